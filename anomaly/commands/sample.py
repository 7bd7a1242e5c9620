"""The verb `sample`."""

from anomaly.generation.sample import sample

__all__ = ["sample"]
