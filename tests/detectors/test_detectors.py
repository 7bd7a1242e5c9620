"""Contract checks of every detector, and losses and maps of Autoencoder and FastFlow against their papers."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from anomaly.detectors import DETECTORS
from anomaly.detectors.autoencoder import Autoencoder, Measure
from anomaly.detectors.fastflow import FastFlow
from anomaly.errors import UsageError
from anomaly.registry import detector_class
from anomaly.testing.checks import CHECKS
from anomaly.testing.toy_training import Builder
from anomaly.training.fitted_model import build_detector
from tests.detectors.tiny_detectors import OPTIONS, batch_of, build, fit, parts, without_trainer

pytestmark = pytest.mark.slow


@cache
def builder(name: str) -> Builder:
    """Builder of a detector; all its checks share one training."""
    return Builder(detector_class(name), OPTIONS[name])


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_contract(name: str, check: str) -> None:
    if name == "anomalib":
        pytest.importorskip("anomalib")
    CHECKS[check](builder(name))


def test_registry_rejects_names_of_other_classes() -> None:
    assert set(OPTIONS) == set(DETECTORS)
    for name, message in (
        ("fastflo", "nearest: 'fastflow'"),
        ("anomaly.detectors.base:Nothing", "cannot be imported"),
        ("no.such.module:Class", "cannot be imported"),
        ("anomaly.detectors.base:Anomaly", "is not a detector: Anomaly does not derive"),
    ):
        with pytest.raises(UsageError, match=message):
            detector_class(name)
    with pytest.raises(UsageError, match="no option 'sise'; nearest: 'size'"):
        build_detector("autoencoder", {"sise": 64})


@pytest.mark.parametrize(("option", "value"), [("size", 100), ("size", 32), ("smooth", 4)])
def test_autoencoder_rejects_invalid_sizes(option: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"{option} {value}: .*, e.g. "):
        Autoencoder(**{option: value})


@pytest.mark.parametrize("measure", ["l2", "ssim", "msgms", "ssim+msgms"])
@pytest.mark.parametrize("network", ["strided", "unet"])
def test_autoencoder_supports_every_measure(measure: Measure, network: str) -> None:
    corruption = "structured" if network == "unet" else "none"
    detector = build("autoencoder", network=network, loss=measure, score=measure, corruption=corruption)
    losses = fit(detector, parts(8), num_epochs=4)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert (detector(parts(2)).anomaly_map >= -1e-6).all()


@torch.no_grad()
def test_autoencoder_map_is_smoothed_residual() -> None:
    detector = build("autoencoder", score="l2", smooth=5).eval()
    x = torch.rand(2, 3, 64, 64)
    r = ((x - detector.network(x)) ** 2).mean(dim=1)
    result = detector.anomaly(x)
    assert result.anomaly_map[0, 20, 30].item() == pytest.approx(r[0, 18:23, 28:33].mean().item(), rel=1e-5)
    assert torch.equal(result.score, detector.pooled_score(result.anomaly_map))


def test_fastflow_loss_is_negative_log_likelihood() -> None:
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
def test_fastflow_map_is_mean_likelihood_of_levels() -> None:
    detector = build("fastflow").eval()
    assert isinstance(detector, FastFlow)
    x = detector.preprocess(parts(2))
    total = torch.zeros(2, 64, 64, dtype=torch.float64)
    for y, flow in zip(detector.backbone(x), detector.flows, strict=True):
        energy = 0.5 * (flow(y)[0] ** 2).mean(dim=1, keepdim=True)
        total += torch.exp(-functional.interpolate(energy.double(), (64, 64), mode="bilinear"))[:, 0]
    result = detector.anomaly(x)
    assert torch.allclose(result.anomaly_map.double(), -torch.log(total / 2), atol=1e-5)
    assert torch.equal(result.score, detector.pooled_score(result.anomaly_map))


@torch.no_grad()
def test_fastflow_map_does_not_saturate_at_clear_defects() -> None:
    detector = build("fastflow").eval()
    assert isinstance(detector, FastFlow)
    for flow in detector.flows:
        flow.norm.weight.mul_(100.0)  # energies in the thousands: exp(-e) is 0 in single precision
    anomaly_map = detector.anomaly(detector.preprocess(parts(1))).anomaly_map
    assert torch.isfinite(anomaly_map).all()
    assert anomaly_map.min() > 200
    assert len(anomaly_map.unique()) > 3000


def test_fastflow_training_is_equal_with_and_without_cache() -> None:
    losses = [fit(build("fastflow", cache_gib=gib), parts(12), num_epochs=3, batch_size=4) for gib in (1.0, 1e-4, 0.0)]
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)


def test_fastflow_keeps_its_backbone_unchanged() -> None:
    detector = build("fastflow")
    before = {key: value.clone() for key, value in detector.backbone.state_dict().items()}
    losses = fit(detector, parts(8), num_epochs=4)
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[key]) for key, value in detector.backbone.state_dict().items())
