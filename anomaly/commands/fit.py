"""The verb `fit`."""

from anomaly.training.fit import fit

__all__ = ["fit"]
