"""Frozen pretrained feature networks from timm, and two of torchvision, with weights that may lie in a local folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from anomaly.errors import UsageError, WeightsError

WEIGHTS_FOLDER_VARIABLE = "ANOMALY_WEIGHTS"
FROM_TORCHVISION = ("alexnet", "squeezenet1_1")
"""Networks that timm does not have: their convolutional part, as one feature level"""


class _NormedMaps(FeatureGetterNet):  # type: ignore[misc]
    """Maps of transformer blocks after the network's last norm, which timm leaves out unless asked at construction."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, norm=True, **options)


class _TorchvisionFeatures(nn.Module):
    """The convolutional part of a torchvision network, under torchvision's own keys."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.features = torchvision.models.get_model(name, weights=None).features

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.features(x)]


class Backbone(nn.Module):
    """A network cut into feature maps, frozen: never trained, always in eval mode.

    Args:
        name: a timm model name, e.g. `resnet18` or `cait_m48_448`, or torchvision's `alexnet` or `squeezenet1_1`.
        layers: which feature levels (`out_indices` of timm: for CNNs one per stride, for ViTs block numbers; torchvision's
            networks have the level 0).
        size: height and width of the input, which fixes those of the maps.
        weights: `pretrained` (the folder of `ANOMALY_WEIGHTS`, then timm's cache, then a download), `none` (random;
            only for tests and for loading a state afterwards), or the path of a `.safetensors` file or of a folder of
            them.

    Raises:
        UsageError: a name that timm does not know, or layers that the network does not have.
        WeightsError: weights that are nowhere to be had or do not fit the network.
    """

    def __init__(self, name: str, *, layers: Sequence[int], size: tuple[int, int], weights: str) -> None:
        super().__init__()
        self.is_transformer = name.startswith(("vit_", "deit", "cait_", "beit", "eva"))
        """Whether the maps come from transformer blocks, with the network's last norm, as in the FastFlow paper"""
        network = _build(name, layers=tuple(layers), size=size, transformer=self.is_transformer)
        self.provenance = load_weights(network, name, weights)
        config = timm.get_pretrained_cfg(name)
        self.mean: tuple[float, ...] = tuple(config.mean) if config else (0.485, 0.456, 0.406)
        self.std: tuple[float, ...] = tuple(config.std) if config else (0.229, 0.224, 0.225)
        self.network = network.requires_grad_(False).eval()
        with torch.no_grad():
            maps = self.network(torch.zeros(1, 3, *size))
        self.shapes: list[tuple[int, int, int]] = [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode: batch-norm statistics are part of the frozen network."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of normalised images.

        Args:
            x: (N, 3, h, w) float.

        Returns:
            One (N, C, h_i, w_i) float map per level; `shapes` holds their (C, h_i, w_i).
        """
        maps: list[Tensor] = self.network(x)
        return maps


def _build(name: str, *, layers: tuple[int, ...], size: tuple[int, int], transformer: bool) -> nn.Module:
    if name in FROM_TORCHVISION:
        if layers != (0,):
            raise UsageError(f"backbone {name!r} has no feature levels {layers}: its one level is 0, take layers [0]")
        return _TorchvisionFeatures(name)
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"{name.split('.')[0][:6]}*")[:5])
        raise UsageError(f"backbone {name!r} is not a timm model; near names: {near or 'see timm.list_models()'}")
    options: dict[str, object] = {"features_only": True, "out_indices": layers}
    if transformer:
        options |= {"img_size": size, "feature_cls": _NormedMaps}
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, **options)
    except (IndexError, AssertionError, ValueError, TypeError) as error:
        raise UsageError(f"backbone {name!r} has no feature levels {layers}: {error}") from error
    return network


def weights_at_hand(name: str) -> str:
    """Say where pretrained weights of a backbone lie on this machine, empty where they would have to be downloaded."""
    local = local_weights_file(name, os.environ.get(WEIGHTS_FOLDER_VARIABLE, ""))
    return str(local) if local else _cached_file(name)


def _cached_file(name: str) -> str:
    if name in FROM_TORCHVISION:
        kept = Path(torch.hub.get_dir(), "checkpoints", Path(_torchvision_weights(name).url).name)
        return str(kept) if kept.is_file() else ""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return ""
    for file in ("model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(config.hf_hub_id, file)
        if isinstance(cached, str):
            return cached
    return ""


def _torchvision_weights(name: str) -> Any:
    return torchvision.models.get_model_weights(name).DEFAULT


def local_weights_file(name: str, place: str) -> Path | None:
    """The one .safetensors file for `name` in a folder, or the file itself."""
    if not place:
        return None
    path = Path(place)
    if path.is_file():
        return path
    found = sorted(p for p in path.glob("*.safetensors") if p.name.startswith(f"{name}."))
    if len(found) > 1:
        listing = ", ".join(p.name for p in found)
        raise WeightsError(f"{path} holds {len(found)} files for backbone {name!r} ({listing}): name one as weights")
    return found[0] if found else None


def load_weights(network: nn.Module, name: str, weights: str) -> dict[str, str]:
    """Fill a network with a backbone's weights, by the rules of `Backbone`; gives where they came from, with their hash."""
    if weights == "none":
        return {"weights": "none (random)"}
    place = os.environ.get(WEIGHTS_FOLDER_VARIABLE, "") if weights == "pretrained" else weights
    local = local_weights_file(name, place)
    if local is not None:
        return _load_local(network, name, local)
    if weights != "pretrained":
        raise WeightsError(
            f"no weights for backbone {name!r} at {weights}: give a .safetensors file,"
            f" or a folder with {name}.<tag>.safetensors"
        )
    library = "torchvision" if name in FROM_TORCHVISION else "timm"
    host = urllib.parse.urlparse(
        _torchvision_weights(name).url if name in FROM_TORCHVISION else constants.ENDPOINT
    ).hostname
    if not _cached_file(name) and not _answers(host or ""):
        looked = f"folder {place}" if place else f"{WEIGHTS_FOLDER_VARIABLE} is not set"
        raise WeightsError(
            f"no weights for backbone {name!r} ({looked}; not in {library}'s cache; the model hub does not answer)."
            f" Either put {name}.<tag>.safetensors into a folder and name it by {WEIGHTS_FOLDER_VARIABLE}, or run once"
            f" with a network so that {library} can fetch it. A detector that needs no backbone: --detector autoencoder"
        )
    if name in FROM_TORCHVISION:
        chosen = _torchvision_weights(name)
        _copy_state(
            network, chosen.get_state_dict(progress=False, check_hash=True, weights_only=True), name, "torchvision"
        )
        return {"weights": f"torchvision {chosen}"}
    pretrained = timm.create_model(name, pretrained=True)
    _copy_state(network, pretrained.state_dict(), name, "timm")
    return {"weights": f"timm {timm.get_pretrained_cfg(name).hf_hub_id}"}


def save_weights(name: str, folder: Path) -> dict[str, str]:
    """Write a backbone's pretrained weights into a folder, from where they are at hand or from the model hub.

    Args:
        name: of the backbone.
        folder: where NAME.TAG.safetensors is written; a file in the folder of `ANOMALY_WEIGHTS` is copied as it is.

    Returns:
        `file`, `source` and `licence`, that of timm's pretrained configuration; none that is not stated is guessed.

    Raises:
        UsageError, WeightsError: as `Backbone`.
    """
    local = local_weights_file(name, os.environ.get(WEIGHTS_FOLDER_VARIABLE, ""))
    if local is not None:
        load_file(local)  # refuse what cannot be opened there
        shutil.copyfile(local, folder / local.name)
        return {"file": local.name, "source": local.name, "licence": _licence(".".join(local.name.split(".")[:2]))}
    network = _TorchvisionFeatures(name) if name in FROM_TORCHVISION else timm.create_model(name, pretrained=False)
    source = load_weights(network, name, "pretrained")["weights"]
    config = timm.get_pretrained_cfg(name)
    file = f"{name.partition('.')[0]}.{config.tag if config and config.tag else 'torchvision'}.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / file)
    return {"file": file, "source": source, "licence": _licence(name)}


def _licence(name: str) -> str:
    if name.partition(".")[0] in FROM_TORCHVISION:
        return "bsd-3-clause"
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:  # a tag that timm does not know
        config = None
    return str(config.license) if config and config.license else "not stated: ask whoever made the file"


def _load_local(network: nn.Module, name: str, file: Path) -> dict[str, str]:
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is no safetensors file ({error}): save the weights with safetensors") from error
    _copy_state(network, state, name, str(file))
    return {"weights": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _copy_state(network: nn.Module, state: dict[str, Tensor], name: str, source: str) -> None:
    misfit = f"{source} does not fit backbone {name!r}"
    target = network.state_dict()
    prefix = "model." if isinstance(network, FeatureGetterNet) else ""
    wanted = {key: key.removeprefix(prefix) for key in target}
    lacking = [plain for plain in wanted.values() if plain not in state and not plain.endswith("num_batches_tracked")]
    if lacking:
        raise WeightsError(f"{misfit}: it lacks {len(lacking)} tensors, first {lacking[0]!r}; take the file of {name}")
    found = {key: state[plain] for key, plain in wanted.items() if plain in state}
    for key, value in found.items():
        if value.shape != target[key].shape:
            raise WeightsError(
                f"{misfit}: {wanted[key]} is {tuple(value.shape)}, wanted {tuple(target[key].shape)};"
                f" take the file of {name}, and for a transformer the size it was trained at"
            )
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in found.items()}, strict=False)


def _answers(host: str) -> bool:
    """Whether the host of the weights can be reached: one try of three seconds instead of the client's minute of retries."""
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True  # behind a proxy only the client itself can tell
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        return False
    return True
