"""The verb `export`."""

from anomaly.export.detector import export

__all__ = ["export"]
