"""Figures of scores and anomaly maps on labelled images, exact and with intervals."""

from __future__ import annotations

from anomaly.metrics.image_level import (
    ImageMetrics,
    auroc,
    average_precision,
    f1_max,
    image_metrics,
    roc_curve,
)
from anomaly.metrics.intervals import Estimate, Interval, binomial_interval
from anomaly.metrics.pixel_level import PixelCurve, PixelMetrics, pixel_metrics
from anomaly.metrics.pointing import pointing_accuracy
from anomaly.metrics.rates import Rate, Rates, rates_at_threshold

__all__ = [
    "Estimate",
    "ImageMetrics",
    "Interval",
    "PixelCurve",
    "PixelMetrics",
    "Rate",
    "Rates",
    "auroc",
    "average_precision",
    "binomial_interval",
    "f1_max",
    "image_metrics",
    "pixel_metrics",
    "pointing_accuracy",
    "rates_at_threshold",
    "roc_curve",
]
