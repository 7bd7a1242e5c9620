"""The verb `deploy`."""

from anomaly.deployment.triton import deploy

__all__ = ["deploy"]
