"""The verb `verify`."""

from anomaly.export.parity import verify

__all__ = ["verify"]
