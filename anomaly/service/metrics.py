"""Prometheus metrics of a service, in a separate registry.

Labels have few values: model names, routes, status codes and verdicts. They never contain text of a request.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import InfoMetricFamily
from prometheus_client.registry import Collector

from anomaly.service.model_repository import ModelRepository

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Metrics of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("anomaly_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "anomaly_request_seconds", "Time from the header of a request to the end of its response.", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.verdicts = Counter(
            "anomaly_images", "Images scored, by verdict.", ["model", "version", "verdict"], registry=self.registry
        )
        self.batch_images = Histogram(
            "anomaly_batch_images", "Images in one inference.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.inference_seconds = Histogram(
            "anomaly_inference_seconds", "Time of one inference.", buckets=SECONDS, registry=self.registry
        )
        self.reloads = Counter(
            "anomaly_model_reloads", "Replaced model files.", ["model", "version", "result"], registry=self.registry
        )

    def add_gauge(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Add a gauge; `value` is called at each export."""
        Gauge(name, description, registry=self.registry).set_function(value)

    def add_models(self, models: ModelRepository) -> None:
        """Add the served models with the hashes of their files."""
        self.registry.register(_ModelInfo(models))

    def observe_inference(self, num_images: int, seconds: float) -> None:
        """Count one inference."""
        self.batch_images.observe(num_images)
        self.inference_seconds.observe(seconds)

    def observe_scores(self, score: np.ndarray, *, threshold: float, model: str, version: str) -> None:
        """Count images by verdict; a score (N,) above the threshold is a defect."""
        num_defect = int((score > threshold).sum())
        self.verdicts.labels(model, version, "defect").inc(num_defect)
        self.verdicts.labels(model, version, "good").inc(len(score) - num_defect)

    def export(self) -> bytes:
        """Export all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class _ModelInfo(Collector):
    """The active model files, read at each export."""

    def __init__(self, models: ModelRepository) -> None:
        self._models = models

    def collect(self) -> list[InfoMetricFamily]:
        """Return one line per model and version."""
        family = InfoMetricFamily("anomaly_model", "The active model.", labels=["model", "version"])
        for served in self._models.all():
            values = {"sha256": served.scorer.sha256, "current": str(served.is_current).lower()}
            family.add_metric([served.file.name, str(served.file.version)], values)
        return [family]
