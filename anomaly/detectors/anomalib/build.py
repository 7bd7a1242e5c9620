"""Construction of anomalib's modules without their processors and without downloads.

anomalib's constructors request pretrained networks from `timm` and `torchvision`. Here they get random networks. Then the
networks of `timm` get their weights as in `Backbone`, and those of `torchvision` from a local file.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import timm
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum
from torchvision.transforms import v2

from anomaly.errors import UsageError, WeightsError
from anomaly.nn.backbones import WEIGHTS_FOLDER_VARIABLE, load_weights, local_weights_file
from anomaly.system.files import sha256_of
from anomaly.system.suggestions import nearest

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
PROCESSORS = ("pre_processor", "post_processor", "evaluator", "visualizer")
NOT_OPTIONS = (*PROCESSORS, "pre_trained")
"""Arguments of anomalib's classes that are not options"""


def model_class(name: str) -> Any:
    """Find an image model of anomalib by its class name.

    Raises:
        UsageError: anomalib is not installed, or the name is unknown.
    """
    with quiet():
        try:
            models = importlib.import_module("anomalib.models.image")
            base = importlib.import_module("anomalib.models.components").AnomalibModule
        except ImportError as error:
            raise UsageError(
                f"{name} is a model of anomalib, which is not installed ({error}): pip install anomaly[bench]"
            ) from error
    known = [key for key, value in vars(models).items() if isinstance(value, type) and issubclass(value, base)]
    if name not in known:
        near = nearest(name, known)
        raise UsageError(f"anomalib has no image model {name!r}; nearest: {near!r}; all: {', '.join(sorted(known))}")
    return getattr(models, name)


def build_module(found: Any, options: Mapping[str, Any], *, size: int, weights: str) -> tuple[Any, dict[str, str]]:
    """Build a module of anomalib for inputs of size × size.

    Args:
        found: class of the module.
        options: arguments of its constructor.
        size: height and width of the input in pixels.
        weights: source of the backbones' weights, as in `Backbone`.

    Returns:
        The module, and the origin of its backbones' weights.

    Raises:
        UsageError: unknown option, or an argument that the constructor rejects.
        WeightsError: weights not found, or not matching the network.
    """
    name, parameters = found.__name__, inspect.signature(found).parameters
    known = [key for key in parameters if key not in NOT_OPTIONS]
    for option in options:
        if option not in known:
            raise UsageError(f"anomalib's {name} has no option {option!r}; nearest: {nearest(option, known)!r}")
    parts: dict[str, Any] = {key: False for key in PROCESSORS if key in parameters}
    if "pre_processor" in parts:  # some constructors read the input size from it
        processing = importlib.import_module("anomalib.pre_processing")
        mean, std = default_normalisation(found)
        resize = v2.Compose([v2.Resize((size, size)), v2.Normalize(mean, std)])
        parts["pre_processor"] = processing.PreProcessor(transform=resize)
    requested: list[tuple[str, nn.Module | None]] = []
    with quiet(), _random_networks(found, requested):
        try:
            module = found(**options, **parts)
        except (ValueError, TypeError, KeyError, RuntimeError, AssertionError, ImportError, OSError) as error:
            raise UsageError(
                f"anomalib's {name} cannot be built for size {size} with {dict(options)}: {error}"
            ) from error
    module.pre_processor = None
    provenance: dict[str, str] = {}
    for backbone, network in requested:
        if network is not None:
            provenance |= load_weights(network, backbone, weights)
        else:
            provenance |= _load_torchvision(module.model, backbone, weights)
    return module, provenance


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and log lines of anomalib and its trainer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("anomalib", "lightning", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield


@contextmanager
def _random_networks(found: Any, requested: list[tuple[str, nn.Module | None]]) -> Iterator[None]:
    """Make `timm` and `torchvision` return random networks, and append the requested pretrained ones to a list."""
    create = timm.create_model

    def create_random(model_name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        network: nn.Module = create(model_name, pretrained=False, **options)
        if pretrained:
            requested.append((model_name, network))
        return network

    def random_state(self: WeightsEnum, *_: Any, **__: Any) -> Mapping[str, Tensor]:
        backbone = type(self).__name__.removesuffix("_Weights").lower()
        requested.append((backbone, None))
        state: Mapping[str, Tensor] = torchvision.models.get_model(backbone, weights=None).state_dict()
        return state

    with ExitStack() as restored:
        _replace(timm, "create_model", create_random, restored)
        _replace(WeightsEnum, "get_state_dict", random_state, restored)
        _replace(importlib.import_module(found.__module__), "download_and_extract", lambda *_, **__: None, restored)
        yield


def _replace(owner: Any, name: str, value: Any, restored: ExitStack) -> None:
    """Replace an attribute of a module or class until the stack is closed."""
    if name in vars(owner):
        restored.callback(setattr, owner, name, vars(owner)[name])
    else:
        restored.callback(delattr, owner, name)
    setattr(owner, name, value)


def _load_torchvision(model: nn.Module, backbone: str, weights: str) -> dict[str, str]:
    """Load the weights of a torchvision network into the feature extractors of a model."""
    if weights == "none":
        return {"weights": "none (random)"}
    place = os.environ.get(WEIGHTS_FOLDER_VARIABLE) if weights == "pretrained" else weights
    file = local_weights_file(backbone, place)
    if file is None:
        raise WeightsError(
            f"no weights for torchvision's {backbone!r}: put {backbone}.<tag>.safetensors with its keys into a folder and"
            f" set {WEIGHTS_FOLDER_VARIABLE} to the folder"
        )
    state, names = load_file(file), set(torchvision.models.get_model(backbone, weights=None).state_dict())
    target = model.state_dict()
    wanted = {key: name for key in target for name in names if key.endswith(f"feature_extractor.{name}")}
    missing = [
        n
        for k, n in wanted.items()
        if not n.endswith("num_batches_tracked") and (n not in state or state[n].shape != target[k].shape)
    ]
    if missing or not wanted:
        raise WeightsError(
            f"{file} does not fit torchvision's {backbone!r}: {len(missing)} of {len(wanted)} tensors are missing"
        )
    model.load_state_dict({key: state[name].float() for key, name in wanted.items() if name in state}, strict=False)
    return {"weights": file.name, "sha256": sha256_of(file)}


def default_normalisation(found: Any) -> Normalisation:
    """Default mean and std in [0, 1] of a class of anomalib; 0 and 1 without normalisation."""
    return _normalisation(_transforms(found.configure_pre_processor()))


def is_plain(module: Any) -> bool:
    """Whether a module's preprocessing is only a resize and the default normalisation of its class."""
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
