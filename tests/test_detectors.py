"""The contract of a detector as checks over the registry, and what each detector's paper says of loss and map."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_part
from torch import Tensor
from torch.nn import functional

from anomaly.data.dataset import Batch
from anomaly.detectors import DETECTORS, detector_class
from anomaly.detectors.autoencoder import Autoencoder, Measure
from anomaly.detectors.base import Detector
from anomaly.detectors.fastflow import FastFlow
from anomaly.errors import CalibrationError, UsageError
from anomaly.run_folder import build_detector

OPTIONS: dict[str, dict[str, Any]] = {
    "autoencoder": {"size": 64, "width": 8, "smooth": 3, "loss": "l2", "score": "l2"},
    "fastflow": {"size": 64, "backbone": "resnet10t", "layers": (1, 2), "weights": "none", "num_steps": 2},
}
"""Small ones"""
EVERY = pytest.mark.parametrize("name", sorted(DETECTORS))


def build(name: str, **options: Any) -> Detector:
    torch.manual_seed(0)
    return build_detector(name, OPTIONS[name] | options)


def parts(num: int, *, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.stack([draw_part(seed + n) for n in range(num)]))


def batch_of(image: Tensor, *, name: str = "") -> Batch:
    num = len(image)
    mask = torch.zeros(image.shape[:3], dtype=torch.bool)
    return Batch(image, mask, torch.zeros(num, dtype=torch.bool), [f"{name}{n}" for n in range(num)])


def without_trainer(detector: Detector, *, num_steps: int) -> Detector:
    """Stand in for what `training_step` and `configure_optimizers` ask of a trainer."""
    detector.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    detector._trainer = SimpleNamespace(estimated_stepping_batches=num_steps)  # type: ignore[assignment]
    return detector


def fit(detector: Detector, image: Tensor, *, num_epochs: int, batch_size: int = 8) -> list[float]:
    """Train as a trainer would; gives the losses."""
    batches = [batch_of(part, name=f"{n}/") for n, part in enumerate(image.split(batch_size))]
    without_trainer(detector, num_steps=num_epochs * len(batches)).train()
    configured: Any = detector.configure_optimizers()
    losses = []
    for _ in range(num_epochs):
        for index, batch in enumerate(batches):
            loss = detector.training_step(batch, index)
            assert isinstance(loss, Tensor)
            configured["optimizer"].zero_grad()
            loss.backward()
            configured["optimizer"].step()
            configured["lr_scheduler"]["scheduler"].step()
            losses.append(loss.item())
    detector.on_fit_end()
    detector.eval()
    return losses


@EVERY
def test_constructor_is_the_whole_configuration(name: str) -> None:
    parameters = inspect.signature(detector_class(name)).parameters
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    detector = build(name)
    assert set(detector.hparams) == set(parameters)
    again = build_detector(name, dict(detector.hparams))
    assert [(k, v.shape) for k, v in again.state_dict().items()] == [
        (k, v.shape) for k, v in detector.state_dict().items()
    ]
    assert detector.epochs == detector.hparams["epochs"]
    assert detector.batch_size == detector.hparams["batch_size"]


@EVERY
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_forward_gives_an_anomaly_in_both_modes(name: str, training: bool, resize: str) -> None:
    detector = build(name, resize=resize).train(training)
    with torch.no_grad():
        said = detector(parts(3))
        mixed = detector([parts(1)[0], parts(1)[0, 10:, 3:]])
    for found, num in ((said, 3), (mixed, 2)):
        assert type(found).__name__ == "Anomaly"
        assert found.score.shape == (num,)
        assert found.anomaly_map.shape == (num, 64, 64)
        assert found.score.dtype == found.anomaly_map.dtype == torch.float32
        assert torch.isfinite(found.anomaly_map).all()


@EVERY
@torch.no_grad()
def test_score_depends_on_its_own_image_only(name: str) -> None:
    detector = build(name).eval()
    image = parts(5)
    whole = detector(image)
    assert torch.equal(detector(image).score, whole.score)
    assert torch.equal(detector(image).anomaly_map, whole.anomaly_map)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(detector(image[order]).score, whole.score[order], rtol=1e-5, atol=1e-6)
    for n in range(5):
        assert torch.allclose(detector(image[n : n + 1]).anomaly_map[0], whole.anomaly_map[n], rtol=1e-5, atol=1e-6)
    assert torch.equal(detector(list(image)).score, whole.score)


@EVERY
def test_short_fit_puts_a_defect_above_good(name: str) -> None:
    detector = build(name, learning_rate=3e-3)
    losses = fit(detector, parts(24), num_epochs=10)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    good = parts(6, seed=500)
    defect = good.clone()
    defect[:, 20:44, 24:56] = torch.tensor([255, 60, 40], dtype=torch.uint8)
    with torch.no_grad():
        assert detector(defect).score.min() > 1.5 * detector(good).score.max()


@EVERY
def test_same_seed_trains_to_the_same_state(name: str) -> None:
    states, losses = [], []
    for _ in range(2):
        detector = build(name)
        losses.append(fit(detector, parts(8), num_epochs=2, batch_size=4))
        states.append(detector.state_dict())
    assert losses[0] == losses[1]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@EVERY
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    detector = without_trainer(build(name), num_steps=1).train()
    configured: Any = detector.configure_optimizers()
    loss = detector.training_step(batch_of(parts(4)), 0)
    assert isinstance(loss, Tensor)
    loss.backward()
    trainable = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    assert trainable
    assert not [name for name, p in trainable.items() if p.grad is None or not p.grad.abs().sum() > 0]
    optimised = {id(p) for group in configured["optimizer"].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in trainable.values()}


@EVERY
@torch.no_grad()
def test_calibration_puts_the_median_at_0_and_the_limit_at_1(name: str) -> None:
    detector = build(name).eval()
    raw = detector(parts(20)).score
    given = detector.calibrate([batch_of(part) for part in parts(20).split(6)], alpha=0.1, promise="expected")
    said = detector(parts(20))
    assert np.allclose(given, said.score.numpy(), atol=1e-5)
    for values in (said.score, said.anomaly_map.amax(dim=(1, 2))):
        ordered = values.sort().values  # k = ceil(21 · 0.9) = 19
        assert (ordered[9] + ordered[10]).item() / 2 == pytest.approx(0, abs=1e-4)
        assert ordered[18].item() == pytest.approx(1 / (1 + 1e-3), abs=1e-4)
        assert ordered[19] > 1
    assert torch.equal(raw.argsort(), said.score.argsort())
    again = detector.calibrate([batch_of(parts(20))], alpha=0.1, promise="expected")
    assert np.allclose(again, given, atol=1e-4)


@EVERY
def test_equal_photographs_cannot_calibrate(name: str) -> None:
    with pytest.raises(CalibrationError, match="12 held-out good images score alike"):
        build(name).calibrate([batch_of(parts(1).expand(12, -1, -1, -1))], alpha=0.1, promise="expected")


@EVERY
@torch.no_grad()
def test_state_holds_all_that_decides_a_score(name: str) -> None:
    detector = build(name).eval()
    mask = torch.zeros(72, 88, dtype=torch.bool)
    mask[8:60, 10:80] = True
    detector.preprocess.set_roi(mask)
    detector.calibrate([batch_of(parts(12))], alpha=0.2, promise="expected")
    torch.manual_seed(99)
    other = build_detector(name, OPTIONS[name]).eval()
    assert not torch.equal(other(parts(2)).score, detector(parts(2)).score)
    other.load_state_dict(detector.state_dict())
    for one, two in zip(other(parts(2)), detector(parts(2)), strict=True):
        assert torch.equal(one, two)


@EVERY
def test_region_of_interest_rules_training_score_and_map(name: str) -> None:
    mask = torch.zeros(72, 88, dtype=torch.bool)
    mask[8:50, 10:60] = True
    image = parts(4)
    noise = torch.randint(0, 256, image.shape, dtype=torch.uint8)
    other = torch.where(mask[None, :, :, None], image, noise)
    losses, said = [], []
    for shown in (image, other):
        detector = without_trainer(build(name), num_steps=1)
        detector.preprocess.set_roi(mask)
        losses.append(detector.train().training_step(batch_of(shown), 0))
        with torch.no_grad():
            said.append(detector.eval()(shown))
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(said[0].score, said[1].score)
    assert torch.equal(said[0].anomaly_map, said[1].anomaly_map)
    whole = without_trainer(build(name), num_steps=1).train().training_step(batch_of(image), 0)
    assert not torch.equal(whole, losses[0])
    outside = said[0].anomaly_map[:, ~detector.preprocess.roi]
    assert torch.equal(outside, said[0].anomaly_map.amin(dim=(1, 2))[:, None].expand_as(outside))


def test_registry_refuses_what_is_no_detector() -> None:
    assert set(OPTIONS) == set(DETECTORS)
    for name, message in (
        ("fastflo", "nearest: 'fastflow'"),
        ("anomaly.detectors.base:Nothing", "cannot be imported"),
        ("no.such.module:Class", "cannot be imported"),
        ("anomaly.detectors.base:Anomaly", "no subclass"),
    ):
        with pytest.raises(UsageError, match=message):
            detector_class(name)
    with pytest.raises(UsageError, match="no option 'sise'; nearest: 'size'"):
        build_detector("autoencoder", {"sise": 64})


@pytest.mark.parametrize(("option", "value"), [("size", 100), ("size", 32), ("smooth", 4)])
def test_autoencoder_refuses_sizes_it_cannot_have(option: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"{option} {value}: .*, e.g. "):
        Autoencoder(**{option: value})


@pytest.mark.parametrize("measure", ["l2", "ssim", "msgms", "ssim+msgms"])
@pytest.mark.parametrize("network", ["strided", "unet"])
def test_autoencoder_trains_and_scores_by_every_measure(measure: Measure, network: str) -> None:
    detector = build("autoencoder", network=network, loss=measure, score=measure, repair=network == "unet")
    losses = fit(detector, parts(8), num_epochs=4)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert (detector(parts(2)).anomaly_map >= -1e-6).all()


@torch.no_grad()
def test_autoencoder_map_is_the_smoothed_residual() -> None:
    detector = build("autoencoder", score="l2", smooth=5).eval()
    x = torch.rand(2, 3, 64, 64)
    r = ((x - detector.network(x)) ** 2).mean(dim=1)
    said = detector.anomaly(x)
    assert said.anomaly_map[0, 20, 30].item() == pytest.approx(r[0, 18:23, 28:33].mean().item(), rel=1e-5)
    assert torch.equal(said.score, said.anomaly_map.amax(dim=(1, 2)))


def test_fastflow_loss_is_the_negative_log_likelihood() -> None:
    torch.manual_seed(3)
    detector = FastFlow(
        size=64, backbone="mobilenetv3_small_050", layers=(2, 4), weights="none", num_steps=3, conv3x3_only=False
    )
    for flow in detector.flows:
        for parameter in flow.steps.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    image = parts(2)
    loss = without_trainer(detector, num_steps=1).train().training_step(batch_of(image), 0)
    expected = 0.0
    for feature, flow in zip(detector.backbone(detector.preprocess(image)), detector.flows, strict=True):
        for y in feature:

            def latent(y: Tensor, flow: Any = flow) -> Tensor:
                for step in flow.steps:
                    y, _ = step(y)
                return y

            normed = flow.norm(y[None])
            size = normed.numel()
            jacobian = torch.autograd.functional.jacobian(latent, normed, vectorize=True).reshape(size, size)
            energy = 0.5 * (latent(normed) ** 2).sum()
            expected += (energy - torch.linalg.slogdet(jacobian.double()).logabsdet).item() / 2
    assert isinstance(loss, Tensor)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_fastflow_map_is_the_mean_likelihood_of_the_levels() -> None:
    detector = build("fastflow").eval()
    assert isinstance(detector, FastFlow)
    x = detector.preprocess(parts(2))
    total = torch.zeros(2, 64, 64, dtype=torch.float64)
    for y, flow in zip(detector.backbone(x), detector.flows, strict=True):
        energy = 0.5 * (flow(y)[0] ** 2).mean(dim=1, keepdim=True)
        total += torch.exp(-functional.interpolate(energy.double(), (64, 64), mode="bilinear"))[:, 0]
    said = detector.anomaly(x)
    assert torch.allclose(said.anomaly_map.double(), -torch.log(total / 2), atol=1e-5)
    assert torch.equal(said.score, said.anomaly_map.amax(dim=(1, 2)))


@torch.no_grad()
def test_fastflow_map_keeps_its_range_at_clear_defects() -> None:
    detector = build("fastflow").eval()
    assert isinstance(detector, FastFlow)
    for flow in detector.flows:
        flow.norm.weight.mul_(100.0)  # energies in the thousands: exp(-e) is 0 in single precision
    anomaly_map = detector.anomaly(detector.preprocess(parts(1))).anomaly_map
    assert torch.isfinite(anomaly_map).all()
    assert anomaly_map.min() > 200
    assert len(anomaly_map.unique()) > 3000


def test_fastflow_trains_alike_with_and_without_its_cache() -> None:
    losses = [fit(build("fastflow", cache_gib=gib), parts(12), num_epochs=3, batch_size=4) for gib in (1.0, 1e-4, 0.0)]
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)


def test_fastflow_leaves_its_backbone_alone() -> None:
    detector = build("fastflow")
    before = {key: value.clone() for key, value in detector.backbone.state_dict().items()}
    fit(detector, parts(8), num_epochs=2)
    assert all(torch.equal(value, before[key]) for key, value in detector.backbone.state_dict().items())
