"""Industrial anomaly detection: from a folder of good images to one certified .onnx file.

import anomaly
fitted = anomaly.fit("parts/")                   # trains and calibrates on good images
model = fitted.export("model.onnx")              # later: anomaly.load("model.onnx"), without torch
result = model("part.png")
result.verdict, result.score, result.p_value, result.regions
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from anomaly.system.version import VERSION as __version__  # noqa: N811

if TYPE_CHECKING:
    from anomaly.api import Fitted, Model, Result, fit, load
    from anomaly.errors import (
        AnomalyError,
        CalibrationError,
        DataError,
        ImageError,
        ModelError,
        OutputError,
        ParityError,
        ProviderError,
        TrainingError,
        Unsupported,
        UsageError,
        WeightsError,
    )

__all__ = [
    "AnomalyError",
    "CalibrationError",
    "DataError",
    "Fitted",
    "ImageError",
    "Model",
    "ModelError",
    "OutputError",
    "ParityError",
    "ProviderError",
    "Result",
    "TrainingError",
    "Unsupported",
    "UsageError",
    "WeightsError",
    "__version__",
    "fit",
    "load",
]

_API = ("Fitted", "Model", "Result", "fit", "load")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'anomaly' has no attribute {name!r}; public names: {', '.join(__all__)}")
    home = importlib.import_module("anomaly.api" if name in _API else "anomaly.errors")
    globals()[name] = value = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
