"""What the service tells Prometheus, in a registry of its own.

Labels take few values: names of models and routes, codes of answers, verdicts; never anything that a request says.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import InfoMetricFamily
from prometheus_client.registry import Collector

from anomaly.service.model_repository import Models

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("anomaly_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "anomaly_request_seconds", "From the head of a request to the end of its answer.", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.verdicts = Counter(
            "anomaly_images", "Images scored, by verdict.", ["model", "version", "verdict"], registry=self.registry
        )
        self.batch_images = Histogram(
            "anomaly_batch_images", "Images in one inference.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.inference_seconds = Histogram(
            "anomaly_inference_seconds", "Of one inference.", buckets=SECONDS, registry=self.registry
        )
        self.reloads = Counter(
            "anomaly_model_reloads", "Model files that were replaced.", ["model", "version", "result"],
            registry=self.registry,
        )  # fmt: skip

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is asked for its value."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def watch_models(self, models: Models) -> None:
        """Add the models that serve, with the hashes of their files."""
        self.registry.register(_ModelInfo(models))

    def observe_inference(self, num_images: int, seconds: float) -> None:
        """Count one inference."""
        self.batch_images.observe(num_images)
        self.inference_seconds.observe(seconds)

    def observe_scores(self, score: np.ndarray, *, threshold: float, model: str, version: str) -> None:
        """Count scored images; a score above the threshold is a defect."""
        num_defect = int((score > threshold).sum())
        self.verdicts.labels(model, version, "defect").inc(num_defect)
        self.verdicts.labels(model, version, "good").inc(len(score) - num_defect)

    def text(self) -> bytes:
        """Write all of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _ModelInfo(Collector):
    """The files that serve now, read when asked."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> list[InfoMetricFamily]:
        """Give one line for every model and version."""
        family = InfoMetricFamily("anomaly_model", "The model that serves.", labels=["model", "version"])
        for served in self._models.all():
            told = {"sha256": served.scorer.sha256, "current": str(served.is_current).lower()}
            family.add_metric([served.place.name, str(served.place.version)], told)
        return [family]
