"""From a trained model to one certified .onnx file."""
