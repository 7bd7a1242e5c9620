"""From the name of an anomalib class to its module: without its processors, with our weights, without a download.

anomalib's constructors ask `timm` and `torchvision` for pretrained networks. Here they get empty ones; those of `timm` are
then filled as `Backbone` fills its own, those of `torchvision` from a local file.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import timm
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum
from torchvision.transforms import v2

from anomaly.errors import UsageError, WeightsError
from anomaly.nn.backbones import WEIGHTS_FOLDER_VARIABLE, load_weights, local_weights_file
from anomaly.system.suggestions import nearest

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
PROCESSORS = ("pre_processor", "post_processor", "evaluator", "visualizer")
NOT_OPTIONS = (*PROCESSORS, "pre_trained")
"""Arguments of anomalib's classes that are decided here"""


def model_class(name: str) -> Any:
    """Find one of anomalib's image models by the name of its class.

    Raises:
        UsageError: anomalib is not installed, or has no such model.
    """
    with quiet():
        try:
            models = importlib.import_module("anomalib.models.image")
            base = importlib.import_module("anomalib.models.components").AnomalibModule
        except ImportError as error:
            raise UsageError(
                f"{name} is a model of anomalib, which is not here ({error}): pip install anomaly[bench]"
            ) from error
    known = [key for key, value in vars(models).items() if isinstance(value, type) and issubclass(value, base)]
    if name not in known:
        near = nearest(name, known)
        raise UsageError(f"anomalib has no image model {name!r}; nearest: {near!r}; all: {', '.join(sorted(known))}")
    return getattr(models, name)


def build_module(found: Any, options: Mapping[str, Any], *, size: int, weights: str) -> tuple[Any, dict[str, str]]:
    """Build a module of anomalib for inputs of size × size, and say where its backbones' weights came from.

    Raises:
        UsageError: an option that the class does not have, or what its constructor refuses.
        WeightsError: weights that are nowhere to be had or do not fit.
    """
    name, parameters = found.__name__, inspect.signature(found).parameters
    known = [key for key in parameters if key not in NOT_OPTIONS]
    for option in options:
        if option not in known:
            raise UsageError(f"anomalib's {name} has no option {option!r}; nearest: {nearest(option, known)!r}")
    parts: dict[str, Any] = {key: False for key in PROCESSORS if key in parameters}
    if "pre_processor" in parts:  # some constructors read the size of the input from it
        processing = importlib.import_module("anomalib.pre_processing")
        mean, std = default_normalisation(found)
        resize = v2.Compose([v2.Resize((size, size)), v2.Normalize(mean, std)])
        parts["pre_processor"] = processing.PreProcessor(transform=resize)
    asked: list[tuple[str, nn.Module | None]] = []
    with quiet(), _empty_networks(found, asked):
        try:
            module = found(**options, **parts)
        except (ValueError, TypeError, KeyError, RuntimeError, AssertionError, ImportError, OSError) as error:
            raise UsageError(
                f"anomalib's {name} cannot be built for size {size} with {dict(options)}: {error}"
            ) from error
    module.pre_processor = None
    provenance: dict[str, str] = {}
    for backbone, network in asked:
        if network is not None:
            provenance |= load_weights(network, backbone, weights)
        else:
            provenance |= _load_torchvision(module.model, backbone, weights)
    return module, provenance


@contextmanager
def quiet() -> Iterator[None]:
    """Keep anomalib's and its trainer's advice to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("anomalib", "lightning", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield


@contextmanager
def _empty_networks(found: Any, asked: list[tuple[str, nn.Module | None]]) -> Iterator[None]:
    """Let `timm` and `torchvision` give random networks for pretrained ones, and note which were asked for."""
    create = timm.create_model

    def create_empty(model_name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        network: nn.Module = create(model_name, pretrained=False, **options)
        if pretrained:
            asked.append((model_name, network))
        return network

    def random_state(self: WeightsEnum, *_: Any, **__: Any) -> Mapping[str, Tensor]:
        backbone = type(self).__name__.removesuffix("_Weights").lower()
        asked.append((backbone, None))
        state: Mapping[str, Tensor] = torchvision.models.get_model(backbone, weights=None).state_dict()
        return state

    own = importlib.import_module(found.__module__)
    with (
        mock.patch.object(timm, "create_model", create_empty),
        mock.patch.object(WeightsEnum, "get_state_dict", random_state),
        mock.patch.object(own, "download_and_extract", mock.Mock(), create=True),
    ):
        yield


def _load_torchvision(model: nn.Module, backbone: str, weights: str) -> dict[str, str]:
    """Fill every part of a model that a file of a torchvision network names; none may be lacking in the file."""
    if weights == "none":
        return {"weights": "none (random)"}
    file = local_weights_file(
        backbone, os.environ.get(WEIGHTS_FOLDER_VARIABLE, "") if weights == "pretrained" else weights
    )
    if file is None:
        raise WeightsError(
            f"no weights for torchvision's {backbone!r}: put {backbone}.<tag>.safetensors with its keys into a folder and"
            f" name that by {WEIGHTS_FOLDER_VARIABLE}"
        )
    state, names = load_file(file), set(torchvision.models.get_model(backbone, weights=None).state_dict())
    target = model.state_dict()
    wanted = {key: name for key in target for name in names if key.endswith(f"feature_extractor.{name}")}
    lacking = [
        n
        for k, n in wanted.items()
        if not n.endswith("num_batches_tracked") and (n not in state or state[n].shape != target[k].shape)
    ]
    if lacking or not wanted:
        raise WeightsError(
            f"{file} does not fit torchvision's {backbone!r}: it lacks {len(lacking)} of {len(wanted)} tensors"
        )
    model.load_state_dict({key: state[name].float() for key, name in wanted.items() if name in state}, strict=False)
    return {"weights": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def default_normalisation(found: Any) -> Normalisation:
    """Mean and std in [0, 1] by which a class of anomalib normalises unless told otherwise; 0 and 1 where it does not."""
    return _normalisation(_transforms(found.configure_pre_processor()))


def is_plain(module: Any) -> bool:
    """Whether a module preprocesses by nothing but a resize and the default normalisation of its class."""
    steps = _transforms(module.pre_processor)
    others = [step for step in steps if not isinstance(step, (v2.Resize, v2.Normalize))]
    return not others and _normalisation(steps) == default_normalisation(type(module))


def _transforms(pre_processor: Any) -> list[Any]:
    transform = getattr(pre_processor, "transform", None)
    return list(getattr(transform, "transforms", [transform] if transform else []))


def _normalisation(steps: list[Any]) -> Normalisation:
    for step in steps:
        if isinstance(step, v2.Normalize):
            return tuple(float(v) for v in step.mean), tuple(float(v) for v in step.std)
    return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
