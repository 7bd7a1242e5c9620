"""The verb `synthesize`."""

from anomaly.generation.defects import synthesize

__all__ = ["synthesize"]
