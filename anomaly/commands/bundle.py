"""The verb `bundle`."""

from anomaly.deployment.bundle import bundle

__all__ = ["bundle"]
