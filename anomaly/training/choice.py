"""The choice of a detector without a name from the user."""

from __future__ import annotations

from pathlib import Path

from anomaly.nn.backbones import available_weights


def choose_detector(name: str) -> tuple[str, str]:
    """Choose the detector.

    Args:
        name: name of a detector, or `auto`.

    Returns:
        The name, and the reason for it.
    """
    if name != "auto":
        return name, "requested by name"
    weights = available_weights("resnet18")
    if weights:
        return "fastflow", f"its pretrained backbone is available: {Path(weights).name}"
    return (
        "autoencoder",
        "it needs no pretrained weights, and those of resnet18 are not in ANOMALY_WEIGHTS or timm's cache",
    )
