"""The models of a run: one for all images, or one per product."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from anomaly.errors import UsageError
from anomaly.inference.scorer import OnnxScorer, open_for_batches
from anomaly.inference.session import Device
from anomaly.system.files import as_path


def read_product_models(file: str | Path) -> dict[str, Path]:
    """Read a YAML or JSON file of product -> model file; the paths are relative to its folder.

    Raises:
        UsageError: the file cannot be read or holds something else.
    """
    file = as_path(file, name="file")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            f"--models {file} cannot be read ({error}); write PRODUCT: MODEL.onnx, one per line"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise UsageError(f"--models {file} is not a map: write PRODUCT: MODEL.onnx, one per line")
    return {str(product): file.parent / path for product, path in content.items()}


def open_models(models: Mapping[str, Path], *, device: Device) -> dict[str, OnnxScorer]:
    """Open the model of every product.

    Args:
        models: product -> model file.
        device: inference device; `auto` takes a usable GPU, else the CPU.

    Raises:
        ModelError: a file that cannot be loaded.
        ProviderError: the requested device is not available.
    """
    return {product: open_for_batches(path, device=device) for product, path in models.items()}
