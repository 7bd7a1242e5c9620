"""Industrial anomaly detection: from a folder of good photographs to one certified .onnx file."""

__version__ = "0.1.0"
