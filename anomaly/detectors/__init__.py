"""Detectors, one paper per file, and the registry of their names."""

from __future__ import annotations

DETECTORS: dict[str, str] = {
    "autoencoder": "anomaly.detectors.autoencoder:Autoencoder",
    "riad": "anomaly.detectors.riad:Riad",
    "ganomaly": "anomaly.detectors.ganomaly:Ganomaly",
    "fanogan": "anomaly.detectors.fanogan:FAnoGan",
    "differnet": "anomaly.detectors.differnet:DifferNet",
    "fastflow": "anomaly.detectors.fastflow:FastFlow",
    "memory_bank": "anomaly.detectors.memory_bank:MemoryBank",
    "frozen_features": "anomaly.detectors.frozen_features:FrozenFeatures",
    "anomalib": "anomaly.detectors.anomalib.adapter:AnomalibModel",
}
"""Name -> `module:Class`, imported on first use"""

COMPOSED: dict[str, str] = {"fusion": "anomaly.detectors.fusion:Fusion"}
"""Detectors whose members are trained one by one"""
