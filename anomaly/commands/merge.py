"""The verb `merge`."""

from anomaly.runs.merge import merge

__all__ = ["merge"]
