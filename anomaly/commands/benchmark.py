"""The verb `benchmark`."""

from anomaly.benchmark.run import benchmark

__all__ = ["benchmark"]
