"""The verb `profile`."""

from anomaly.scoring.profile import profile

__all__ = ["profile"]
