"""`Backbone`: frozen pretrained feature networks from timm and torchvision, with weights from a local folder or a hub."""

from __future__ import annotations

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
from torch.nn import functional

from anomaly.errors import UsageError, WeightsError
from anomaly.nn import packaged_weights as packaged
from anomaly.system.files import sha256_of

WEIGHTS_FOLDER_VARIABLE = "ANOMALY_WEIGHTS"
FROM_TORCHVISION = ("alexnet", "squeezenet1_1")
"""Networks of torchvision without a timm version; their convolutional part is the only feature level"""


FALLBACK = "tf_efficientnet_lite0"
"""Backbone whose weights an installed package brings, for detectors whose default backbone is not available"""


MARGIN = 32
"""Least margin that is chosen for a convolutional network, in pixels"""


class _NormedMaps(FeatureGetterNet):  # type: ignore[misc]
    """Maps of transformer blocks after the network's last norm, which timm skips by default."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, norm=True, **options)


class _TorchvisionFeatures(nn.Module):
    """Convolutional part of a torchvision network, with torchvision's state-dict keys."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.features = torchvision.models.get_model(name, weights=None).features

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.features(x)]


class Backbone(nn.Module):
    """Frozen network that outputs feature maps; always in eval mode.

    Args:
        name: timm model name, e.g. `resnet18` or `cait_m48_448`, or torchvision's `alexnet` or `squeezenet1_1`.
        layers: feature levels (timm's `out_indices`): one per stride for CNNs, block numbers for ViTs, and 0 for
            torchvision's networks.
        size: height and width of the input in pixels.
        weights: source of the weights: `pretrained`, `none` (random weights), or the path of a `.safetensors` file or of a
            folder of such files. `pretrained` tries the folder `ANOMALY_WEIGHTS`, an installed
            package (see `packaged_weights`), timm's cache, and a download.
        margin: width in pixels of reflected surroundings, a multiple of the coarsest level's stride. The maps are cut back
            to the image. So fewer of their values come from the zeros with which the network pads. None is about 32 for a
            convolutional network, and 0 for others and for smaller inputs.

    Raises:
        UsageError: unknown name, a layer that the network does not have, or an invalid margin.
        WeightsError: weights not found, or not matching the network.
    """

    def __init__(
        self, name: str, *, layers: Sequence[int], size: tuple[int, int], weights: str, margin: int | None = 0
    ) -> None:
        super().__init__()
        self.is_transformer = name.startswith(("vit_", "deit", "cait_", "beit", "eva"))
        """Whether the maps come from transformer blocks, after the network's last norm (as in the FastFlow paper)"""
        network = _build(name, layers=tuple(layers), size=size, transformer=self.is_transformer)
        self.provenance = load_weights(network, name, weights)
        config = timm.get_pretrained_cfg(name)
        self.mean: tuple[float, ...] = tuple(config.mean) if config else (0.485, 0.456, 0.406)
        self.std: tuple[float, ...] = tuple(config.std) if config else (0.229, 0.224, 0.225)
        if "package" in self.provenance:
            self.mean, self.std = packaged.MEAN, packaged.STD
        self.network = network.requires_grad_(False).eval()
        with torch.no_grad():
            maps = self.network(torch.zeros(1, 3, *size))
        self.shapes: list[tuple[int, int, int]] = [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]
        self.margin = _chosen_margin(self, margin, size=size)
        self._cuts = [self.margin * height // size[0] for _, height, _ in self.shapes]

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode: batch-norm statistics are part of the frozen network."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute feature maps of normalised images.

        Args:
            x: (N, 3, h, w) float.

        Returns:
            One map (N, C, h_i, w_i) per level; `shapes` holds their shapes (C, h_i, w_i).
        """
        return self.cut(self.surrounded(x))

    def surrounded(self, x: Tensor) -> list[Tensor]:
        """Compute feature maps with the reflected surroundings; `cut` removes these."""
        maps: list[Tensor] = self.network(functional.pad(x, (self.margin,) * 4, mode="reflect") if self.margin else x)
        return maps

    def cut(self, maps: list[Tensor]) -> list[Tensor]:
        """Cut feature maps of all levels back to the image."""
        if not self.margin:
            return maps
        return [m[:, :, cut:-cut, cut:-cut] for m, cut in zip(maps, self._cuts, strict=True)]


def _chosen_margin(network: Backbone, margin: int | None, *, size: tuple[int, int]) -> int:
    """Check a requested margin, or choose one.

    Raises:
        UsageError: an invalid margin.
    """
    stride = max(-(-size[0] // height) for _, height, _ in network.shapes)
    regular = all((size[0] // h * h, size[1] // w * w) == size for _, h, w in network.shapes)
    supported = regular and not network.is_transformer
    if margin is None:
        chosen = -(-MARGIN // stride) * stride
        return chosen if supported and chosen < min(size) else 0
    if margin and (not supported or not 0 < margin < min(size) or margin % stride):
        raise UsageError(
            f"margin {margin}: give a multiple of {stride} below {min(size)}, with a convolutional backbone whose levels"
            " divide the size, or 0"
        )
    return margin


def _build(name: str, *, layers: tuple[int, ...], size: tuple[int, int], transformer: bool) -> nn.Module:
    if name in FROM_TORCHVISION:
        if layers != (0,):
            raise UsageError(f"backbone {name!r} has no feature levels {layers}: its only level is 0, use layers [0]")
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


def default_backbone(name: str | None, *, default: str, weights: str) -> tuple[str, dict[str, str]]:
    """Choose a backbone where none is given: the default, or the one of the packaged weights if only these are installed.

    Args:
        name: requested backbone; None for none.
        default: default backbone of the detector.
        weights: source of the weights, as in `Backbone`.

    Returns:
        The backbone, and the reason as an entry of `provenance`; empty for the requested one and for the default.
    """
    if name is not None:
        return name, {}
    if weights != "pretrained" or available_weights(default) or not available_weights(FALLBACK):
        return default, {}
    return FALLBACK, {"choice": f"{FALLBACK}: the weights of {default} are not installed"}


def available_weights(name: str) -> str | None:
    """Path of a backbone's pretrained weights on this machine; None if they need a download.

    Args:
        name: backbone name, as in `Backbone`.
    """
    local = local_weights_file(name, os.environ.get(WEIGHTS_FOLDER_VARIABLE)) or packaged.packaged_weights(name)
    return str(local) if local else _cached_file(name)


def _cached_file(name: str) -> str | None:
    if name in FROM_TORCHVISION:
        kept = Path(torch.hub.get_dir(), "checkpoints", Path(_torchvision_weights(name).url).name)
        return str(kept) if kept.is_file() else None
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return None
    for file in ("model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(config.hf_hub_id, file)
        if isinstance(cached, str):
            return cached
    return None


def _torchvision_weights(name: str) -> Any:
    return torchvision.models.get_model_weights(name).DEFAULT


def local_weights_file(name: str, place: str | None) -> Path | None:
    """Find the `.safetensors` file of a backbone; None if there is none.

    Args:
        name: backbone name.
        place: path of a file, which is returned, or of a folder with `NAME.TAG.safetensors`.

    Raises:
        WeightsError: several files for the same backbone.
    """
    if not place:
        return None
    path = Path(place)
    if path.is_file():
        return path
    found = sorted(p for p in path.glob("*.safetensors") if p.name.startswith(f"{name}."))
    if len(found) > 1:
        listing = ", ".join(p.name for p in found)
        raise WeightsError(
            f"{path} holds {len(found)} files for backbone {name!r} ({listing}): give the path of one of them"
        )
    return found[0] if found else None


def load_weights(network: nn.Module, name: str, weights: str) -> dict[str, str]:
    """Load a backbone's weights into a network.

    Args:
        network: network with the backbone's architecture.
        name: backbone name.
        weights: source of the weights, as in `Backbone`.

    Returns:
        The origin of the weights and, for a local file, its hash.

    Raises:
        WeightsError: weights not found, or not matching the network.
    """
    if weights == "none":
        return {"weights": "none (random)"}
    place = os.environ.get(WEIGHTS_FOLDER_VARIABLE) if weights == "pretrained" else weights
    local = local_weights_file(name, place)
    if local is not None:
        return _load_local(network, name, local)
    if weights != "pretrained":
        raise WeightsError(
            f"no weights for backbone {name!r} at {weights}: give a .safetensors file,"
            f" or a folder with {name}.<tag>.safetensors"
        )
    file = packaged.packaged_weights(name)
    if file is not None:
        source = packaged.package_version(name)
        _copy_state(network, packaged.load_packaged(name, file), name, source)
        return {"weights": file.name, "package": source, "sha256": sha256_of(file)}
    library = "torchvision" if name in FROM_TORCHVISION else "timm"
    host = urllib.parse.urlparse(
        _torchvision_weights(name).url if name in FROM_TORCHVISION else constants.ENDPOINT
    ).hostname
    if not _cached_file(name) and not _is_reachable(host or ""):
        searched = f"folder {place}" if place else f"{WEIGHTS_FOLDER_VARIABLE} is not set"
        raise WeightsError(
            f"no weights for backbone {name!r} ({searched}; not in {library}'s cache; the model hub is not reachable)."
            f" Put {name}.<tag>.safetensors into a folder and set {WEIGHTS_FOLDER_VARIABLE} to the folder, or run once"
            f" with network access so that {library} can download it. A detector without a backbone: --detector autoencoder"
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
    """Write a backbone's pretrained weights into a folder, from this machine or from the model hub.

    Args:
        name: backbone name.
        folder: output folder for NAME.TAG.safetensors; a file from the folder `ANOMALY_WEIGHTS` is copied unchanged.

    Returns:
        `file`, `source` and `licence`. The licence comes from timm's pretrained configuration and is never guessed.

    Raises:
        WeightsError: weights not found, or not matching the network.
    """
    local = local_weights_file(name, os.environ.get(WEIGHTS_FOLDER_VARIABLE))
    if local is not None:
        load_file(local)  # refuse a damaged file
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
    except RuntimeError:  # a tag unknown to timm
        config = None
    return str(config.license) if config and config.license else "not stated: ask the author of the file"


def _load_local(network: nn.Module, name: str, file: Path) -> dict[str, str]:
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is not a safetensors file ({error}): save the weights with safetensors") from error
    _copy_state(network, state, name, str(file))
    return {"weights": file.name, "sha256": sha256_of(file)}


def _copy_state(network: nn.Module, state: dict[str, Tensor], name: str, source: str) -> None:
    misfit = f"{source} does not fit backbone {name!r}"
    target = network.state_dict()
    prefix = "model." if isinstance(network, FeatureGetterNet) else ""
    wanted = {key: key.removeprefix(prefix) for key in target}
    missing = [plain for plain in wanted.values() if plain not in state and not plain.endswith("num_batches_tracked")]
    if missing:
        raise WeightsError(
            f"{misfit}: {len(missing)} tensors are missing, first {missing[0]!r}; use the file of {name}"
        )
    found = {key: state[plain] for key, plain in wanted.items() if plain in state}
    for key, value in found.items():
        if value.shape != target[key].shape:
            raise WeightsError(
                f"{misfit}: {wanted[key]} has shape {tuple(value.shape)}, expected {tuple(target[key].shape)};"
                f" use the file of {name}, and for a transformer its training size"
            )
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in found.items()}, strict=False)


def _is_reachable(host: str) -> bool:
    """Whether the host of the weights is reachable: one attempt of 3 s, where the client retries for a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True  # behind a proxy, only the client itself can find out
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        return False
    return True
