"""DifferNet: loss, score and map against reference computations, rotations, cache and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from anomaly.detectors.differnet import DifferNet
from anomaly.errors import UsageError, WeightsError
from anomaly.export.detector import export_graph
from anomaly.inference.difference import relative_difference
from anomaly.inference.scorer import score_bytes
from anomaly.nn.backbones import Backbone, available_weights
from anomaly.nn.rotation import rotate
from tests.detectors.tiny_detectors import batch_of, fit, parts, without_trainer
from tests.plates import draw_part

TINY: dict[str, Any] = {
    "size": 64,
    "backbone": "resnet10t",
    "layers": (1,),
    "weights": "none",
    "hidden": 32,
    "num_steps": 2,
    "num_rotations": 1,
    "train_rotations": 2,
    "learning_rate": 3e-3,
    "epochs": 10,
    "batch_size": 8,
}


def build(**options: Any) -> DifferNet:
    torch.manual_seed(0)
    return DifferNet(**(TINY | options))


def with_random_flow(detector: DifferNet) -> DifferNet:
    """Set random weights, far from the identity."""
    for parameter in detector.flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    detector.flow.initialize(torch.rand(20, detector.dim))
    return detector


@pytest.mark.slow
def test_loss_is_negative_log_likelihood_per_feature() -> None:
    detector = with_random_flow(build(train_rotations=2))
    image = parts(2)
    loss = without_trainer(detector, num_steps=1).train().training_step(batch_of(image), 0)
    x = detector.preprocess(image)
    total = 0.0
    for turned in (x, x.flip(2).flip(3)):  # 0° and 180°
        levels = [detector.backbone(s)[-1] for s in (turned, *(_halved(turned, times) for times in (1, 2)))]
        for y in torch.cat([level.mean(dim=(2, 3)) for level in levels], dim=1):
            jacobian = torch.autograd.functional.jacobian(lambda v: detector.flow(v[None])[0][0], y)
            z = detector.flow(y[None])[0]
            total += (0.5 * (z**2).sum() - torch.linalg.slogdet(jacobian.double()).logabsdet).item() / len(y) / 4
    assert loss.item() == pytest.approx(total, rel=1e-4)


def _halved(x: Tensor, times: int) -> Tensor:
    for _ in range(times):
        x = functional.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
    return x


@pytest.mark.slow
@pytest.mark.parametrize("num_rotations", [1, 4, 6])
def test_score_and_map_equal_automatic_differentiation(num_rotations: int) -> None:
    detector = (
        with_random_flow(build(num_rotations=num_rotations, backbone="efficientnet_b0", layers=(2,))).double().eval()
    )
    x = detector.preprocess(parts(2)).double()
    black = -detector.preprocess.mean / detector.preprocess.std
    score, blurred = torch.zeros(2, dtype=torch.float64), []
    kernel = detector.kernel[:, None] * detector.kernel
    for k in range(num_rotations):
        degrees = 360.0 * k / num_rotations
        turned = (rotate(x - black, degrees) + black).requires_grad_()
        levels = [detector.backbone(s)[-1] for s in (turned, _halved(turned, 1), _halved(turned, 2))]
        z, log_det = detector.flow(torch.cat([level.mean(dim=(2, 3)) for level in levels], dim=1))
        loss = (0.5 * (z**2).sum(dim=1) - log_det) / z.shape[1]
        (gradient,) = torch.autograd.grad(loss.sum(), turned)
        back = rotate(gradient.abs().mean(dim=1, keepdim=True), -degrees)
        blurred.append(functional.conv2d(functional.pad(back, (12,) * 4, mode="reflect"), kernel[None, None])[:, 0])
        score += (z.detach() ** 2).mean(dim=1) / num_rotations
    with torch.no_grad():
        result = detector.anomaly(x)
    expected = torch.stack(blurred).mean(dim=0) * 64 * 64
    assert torch.allclose(result.score, score, rtol=1e-9)
    assert torch.allclose(result.anomaly_map, expected, rtol=1e-6, atol=1e-9 * float(expected.max()))
    assert expected.max() > 1.3 * expected.mean()


def test_map_is_high_at_the_defect() -> None:
    detector = build()
    fit(detector, parts(24), num_epochs=10)
    good = parts(6, seed=500)
    defect = good.clone()
    defect[:, 20:44, 24:56] = torch.tensor([255, 60, 40], dtype=torch.uint8)
    with torch.no_grad():
        result, reference = detector(defect), detector(good)
    assert result.score.min() > 1.5 * reference.score.max()
    inside = result.anomaly_map[:, 18:38, 20:40].mean(dim=(1, 2))
    assert (inside > 1.3 * result.anomaly_map.mean(dim=(1, 2))).all()


def test_training_with_fixed_rotations_is_equal_with_and_without_cache() -> None:
    losses = [fit(build(cache_gib=gib), parts(12), num_epochs=3, batch_size=4) for gib in (1.0, 1e-5, 0.0)]
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)


def test_fixed_features_are_computed_once_and_random_features_in_each_epoch() -> None:
    counts = {}
    for augment in ("fixed", "random"):
        detector = build(augment=augment)
        seen: list[Tensor] = []
        detector._rotated = lambda x, degrees, seen=seen: seen.append(x) or x  # type: ignore[assignment,misc]
        fit(detector, parts(8), num_epochs=3, batch_size=4)
        counts[augment] = sum(len(x) for x in seen)
    assert counts == {"fixed": 8 * 2, "random": 8 * 2 * 3}


def test_random_rotations_differ_by_image_and_continue_after_a_checkpoint() -> None:
    detector, image = build(augment="random"), parts(1).expand(2, -1, -1, -1)
    y = detector._training_features(batch_of(image))
    assert len({tuple(row.tolist()) for row in y}) == 4
    checkpoint: dict[str, Any] = {}
    detector.on_save_checkpoint(checkpoint)
    following = detector._training_features(batch_of(image))
    other = build(augment="random", seed=9)
    other.on_load_checkpoint(checkpoint)
    assert torch.equal(other._training_features(batch_of(image)), following)


def test_backbone_stays_unchanged() -> None:
    detector = build()
    before = {key: value.clone() for key, value in detector.backbone.state_dict().items()}
    fit(detector, parts(8), num_epochs=2)
    assert all(torch.equal(value, before[key]) for key, value in detector.backbone.state_dict().items())


@torch.no_grad()
def test_rotated_corners_are_black() -> None:
    detector = build()
    x = detector.preprocess(parts(1))
    corner = detector._rotated(x, 45.0)[0, :, 0, 0] * detector.preprocess.std[0, :, 0, 0]
    assert torch.allclose(corner + detector.preprocess.mean[0, :, 0, 0], torch.zeros(3), atol=1e-4)


@pytest.mark.slow
def test_exported_graph_gives_equal_scores_and_maps() -> None:
    detector = build(num_rotations=3)  # 120° and 240° are interpolated and turned
    fit(detector, parts(16), num_epochs=3)
    detector.calibrate([batch_of(parts(12, seed=100))], alpha=0.2, guarantee="expected")
    graph = export_graph(detector).SerializeToString()
    noise = np.random.default_rng(0).integers(0, 256, (1, 50, 91, 3), dtype=np.uint8)
    images = np.stack([draw_part(n) for n in (200, 201, 202)])
    for image in (images, noise, np.full((1, 9, 9, 3), 128, dtype=np.uint8)):
        with torch.no_grad():
            result = detector(torch.from_numpy(image))
        exported = score_bytes(graph, image)
        assert relative_difference(result.score.numpy(), exported.score).max() < 1e-4
        assert relative_difference(result.anomaly_map.numpy(), exported.anomaly_map).max() < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 66}, "size 66 cannot be halved twice: use a multiple of 4, e.g. 68"),
        ({"layers": (1, 2)}, r"layers \[1, 2\]: DifferNet needs exactly one feature level, e.g. \[2\]"),
        ({"num_rotations": 0}, "num_rotations 0, train_rotations 2: use at least 1"),
        ({"backbone": "vit_tiny_patch16_224"}, "does not support"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(**options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1"])
@torch.no_grad()
def test_torchvision_networks_use_torchvision_keys(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    whole = torchvision.models.get_model(name, weights=None).eval()
    state = {key: value for key, value in whole.state_dict().items() if not key.startswith("classifier.4")}
    save_file(state, tmp_path / f"{name}.made_up.safetensors")
    monkeypatch.setenv("ANOMALY_WEIGHTS", str(tmp_path))
    backbone = Backbone(name, layers=(0,), size=(64, 64), weights="pretrained")
    x = torch.rand(2, 3, 64, 64)
    (level,) = backbone(x)
    assert torch.equal(level, whole.features(x))
    assert backbone.shapes == [level.shape[1:]]
    assert backbone.provenance["weights"] == f"{name}.made_up.safetensors"
    assert backbone.mean == pytest.approx((0.485, 0.456, 0.406))
    with pytest.raises(UsageError, match=rf"'{name}' has no feature levels \(3,\): its only level is 0"):
        Backbone(name, layers=(3,), size=(64, 64), weights="none")
    monkeypatch.delenv("ANOMALY_WEIGHTS")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=f"no weights for backbone '{name}' .*not in torchvision's cache"):
        Backbone(name, layers=(0,), size=(64, 64), weights="pretrained")
    kept = tmp_path / "checkpoints" / Path(torchvision.models.get_model_weights(name).DEFAULT.url).name
    kept.parent.mkdir()
    kept.touch()
    assert available_weights(name) == str(kept)
