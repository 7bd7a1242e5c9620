"""Industrial anomaly detection: from a folder of good images to one certified .onnx file."""

from anomaly.system.version import VERSION

__version__ = VERSION
