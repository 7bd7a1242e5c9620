"""Export of a trained model to one certified .onnx file."""
