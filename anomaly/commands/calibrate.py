"""The verb `calibrate`."""

from anomaly.recalibration.recalibrate import calibrate

__all__ = ["calibrate"]
