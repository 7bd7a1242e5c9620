"""The verb `replay`."""

from anomaly.runs.replay import replay

__all__ = ["replay"]
