"""The verb `diff`."""

from anomaly.runs.diff import diff

__all__ = ["diff"]
