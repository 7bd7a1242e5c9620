"""f-AnoGAN: both phases, losses and scores against reference computations, resumed training, and export."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from anomaly.detectors.fanogan import FAnoGan
from anomaly.errors import UsageError
from anomaly.export.detector import export_graph
from anomaly.inference.difference import relative_difference
from anomaly.inference.scorer import score_bytes
from anomaly.nn.batch import Batch
from anomaly.nn.similarity import GradientSimilarity
from tests.plates import draw_part

pytestmark = pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning")
TINY: dict[str, Any] = {"size": 32, "width": 2, "latent": 8, "epochs": 2, "batch_size": 4, "smooth": 3}


def build(**options: Any) -> FAnoGan:
    torch.manual_seed(0)
    return FAnoGan(**(TINY | options))


def parts(num: int, *, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.stack([draw_part(seed + n) for n in range(num)]))


def batch_of(image: Tensor, *, name: str = "") -> Batch:
    num = len(image)
    mask = torch.zeros(image.shape[:3], dtype=torch.bool)
    return Batch(image, mask, torch.zeros(num, dtype=torch.bool), [f"{name}{n}" for n in range(num)])


def fit(
    detector: FAnoGan, image: Tensor, *, precision: Any = "32-true", callback: Any = (), checkpoint: Path | None = None
) -> pl.Trainer:
    """Train on the CPU, with the images in order."""
    batches = [batch_of(b, name=f"{n}/") for n, b in enumerate(image.split(detector.batch_size))]
    trainer = pl.Trainer(
        max_epochs=detector.epochs,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callback),
    )
    trainer.fit(detector, DataLoader(batches, batch_size=None), ckpt_path=checkpoint, weights_only=True)
    return trainer


class Record(pl.Callback):
    """Record the state and the logged losses after every batch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.logged: list[dict[str, float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.states.append(copy.deepcopy(pl_module.state_dict()))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        logged: dict[str, float] = {}
        self.logged.append(logged)
        pl_module.log = lambda name, value, **_: logged.__setitem__(name, value.item())  # type: ignore[method-assign,assignment]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.states.append(copy.deepcopy(pl_module.state_dict()))

    def changed(self, step: int) -> set[str]:
        """Networks that change in `step`, counted from 0."""
        before, after = self.states[step : step + 2]
        return {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])} - {"num_steps"}


def test_each_phase_trains_only_its_networks() -> None:
    detector, record = build(epochs=4, gan_share=0.75, critic_steps=5), Record()
    fit(detector, parts(16), callback=[record])
    assert len(record.states) == 17
    assert int(detector.num_steps) == 16
    for step in range(12):  # five critic steps per generator step
        assert "critic" in record.changed(step)
        assert "encoder" not in record.changed(step)
        weights = [state["generator.enter.weight"] for state in record.states[step : step + 2]]
        assert torch.equal(*weights) == (step not in (4, 9))
        assert ("generator" in record.logged[step]) == (step in (4, 9))
    for step in range(12, 16):
        assert record.changed(step) == {"encoder"}  # also not the running statistics of the generator
        assert set(record.logged[step]) == {"residual", "feature_distance"}


def test_every_parameter_of_the_active_networks_gets_a_gradient() -> None:
    detector, seen = build(epochs=1, critic_steps=1), {}

    def descend(loss: Tensor, optimizer: Any, *_: Any) -> None:
        detector.zero_grad()
        loss.backward()
        with_gradient = {id(p) for p in detector.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        seen[len(seen)] = own - with_gradient
        other = [name for name, p in detector.named_parameters() if id(p) in with_gradient - own]
        assert not other

    detector._descend = descend  # type: ignore[method-assign,assignment]
    fit(detector, parts(8))
    unchanged = {name for name, p in detector.named_parameters() for missed in seen.values() if id(p) in missed}
    assert len(seen) == 3  # critic, generator, encoder
    assert unchanged <= {"critic.leave.bias"}  # it cancels in the distance, and its slope is 0
    assert all(p.requires_grad for p in detector.parameters())


def test_adversarial_losses_equal_the_paper() -> None:
    detector, record = build(epochs=1, gan_share=0.9, critic_steps=1, seed=5), Record()
    before = copy.deepcopy(detector)
    fit(detector, parts(4), callback=[record])
    x = before.preprocess(parts(4))
    assert x.min() >= -1
    assert x.max() <= 1
    assert x.max() - x.min() > 0.5
    random = torch.Generator().manual_seed(5)
    fake = before.generator(torch.randn(4, 8, generator=random)).detach()
    between = torch.lerp(fake, x, torch.rand((4, 1, 1, 1), generator=random)).requires_grad_()
    (slope,) = torch.autograd.grad(before.critic(between).sum(), between)
    logged = record.logged[0]
    assert logged["wasserstein_distance"] == pytest.approx(
        (before.critic(x).mean() - before.critic(fake).mean()).item(), rel=1e-4
    )
    assert logged["gradient_penalty"] == pytest.approx(
        ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean().item(), rel=1e-4
    )


def test_encoder_loss_is_izi_f() -> None:
    detector, losses = build(epochs=2, gan_share=0.5, kappa=3.0), []
    original = detector._descend

    def descend(loss: Tensor, *rest: Any) -> None:
        losses.append((loss.item(), copy.deepcopy(detector)))
        original(loss, *rest)

    detector._descend = descend  # type: ignore[method-assign]
    fit(detector, parts(4))
    loss, then = losses[-1]
    assert not then.generator.training
    assert then.encoder.training
    x = then.preprocess(parts(4))
    x_hat = then.generator(then.encoder(x))
    expected = functional.mse_loss(x_hat, x) + 3 * functional.mse_loss(then.critic.trunk(x_hat), then.critic.trunk(x))
    assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_learning_rates_follow_one_cosine_in_each_phase() -> None:
    detector, rates = build(epochs=8, gan_share=0.5, critic_steps=1), []
    original = detector._descend

    def descend(loss: Tensor, optimizer: Any, *rest: Any) -> None:
        original(loss, optimizer, *rest)
        rates.append(optimizer.param_groups[0]["lr"])

    detector._descend = descend  # type: ignore[method-assign]
    fit(detector, parts(4))
    cosine = [0.5 * (1 + np.cos(np.pi * n / 4)) for n in range(4)]
    assert rates[0:8:2] == pytest.approx([detector.learning_rate * part for part in cosine])  # the critic's
    assert rates[1:8:2] == pytest.approx(rates[0:8:2])  # the generator's
    assert rates[8:] == pytest.approx([detector.encoder_learning_rate * part for part in cosine])


@torch.no_grad()
def test_code_range_bounds_the_codes() -> None:
    for code_range in (1.0, 3.0):
        encoder = build(code_range=code_range).encoder.eval()
        x = torch.rand(2, 3, 32, 32)
        u = encoder.leave(encoder.trunk(x).flatten(1))
        assert torch.allclose(encoder(x), code_range * torch.tanh(u / code_range))
        encoder.leave.weight *= 1e4
        assert encoder(x).abs().max() == pytest.approx(code_range)


@torch.no_grad()
@pytest.mark.parametrize("measure", ["l1", "msgms"])
@pytest.mark.parametrize("score", ["izi_f", "map"])
def test_score_and_map_equal_reference(score: str, measure: str) -> None:
    detector = build(score=score, measure=measure, kappa=2.0, smooth=5).eval()
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    x_hat = detector.generator(detector.encoder(x))
    r = (x - x_hat).abs().mean(dim=1)
    if measure == "msgms":  # of images in [0, 1]
        r = 1 - GradientSimilarity()((x + 1) / 2, (x_hat + 1) / 2)
    f, f_hat = detector.critic.trunk(x), detector.critic.trunk(x_hat)
    result = detector.anomaly(x)
    assert result.anomaly_map[1, 20, 25].item() == pytest.approx(r[1, 18:23, 23:28].mean().item(), rel=1e-5)
    expected = ((x - x_hat) ** 2).mean(dim=(1, 2, 3)) + 2 * ((f - f_hat) ** 2).mean(dim=(1, 2, 3))
    assert torch.allclose(
        result.score, expected if score == "izi_f" else result.anomaly_map.amax(dim=(1, 2)), rtol=1e-5
    )


@pytest.mark.parametrize("score", ["izi_f", "map"])
def test_pixels_outside_the_region_change_neither_training_nor_scores(score: str) -> None:
    mask = torch.zeros(72, 88, dtype=torch.bool)
    mask[8:50, 10:60] = True
    image = parts(4)
    noise = torch.randint(0, 256, image.shape, dtype=torch.uint8)
    states, result = [], []
    for images in (image, torch.where(mask[None, :, :, None], image, noise)):
        detector = build(epochs=4, critic_steps=1, score=score)
        detector.preprocess.set_roi(mask)
        fit(detector, images)
        states.append(detector.state_dict())
        with torch.no_grad():
            result.append(detector.eval()(images))
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert torch.equal(result[0].score, result[1].score)
    assert torch.equal(result[0].anomaly_map, result[1].anomaly_map)
    outside = result[0].anomaly_map[:, ~detector.preprocess.roi]
    assert torch.equal(outside, result[0].anomaly_map.amin(dim=(1, 2))[:, None].expand_as(outside))
    inside = detector.preprocess.roi
    with torch.no_grad():
        x = detector.preprocess(image)
        x_hat = detector.generator(detector.encoder(x))
        expected = ((x - x_hat) ** 2)[:, :, inside].mean(dim=(1, 2))
        assert torch.allclose(detector._terms(x, x_hat * inside)[0], expected, rtol=1e-5)


class SaveCheckpoint(pl.Callback):
    """Save a checkpoint after a number of epochs."""

    def __init__(self, epoch: int, path: Path) -> None:
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch - 1:
            trainer.save_checkpoint(self.path)


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [2, 3])
def test_resumed_fit_gives_the_same_weights(tmp_path: Path, epoch: int) -> None:
    options = {"epochs": 4, "gan_share": 0.55, "critic_steps": 2}  # the second phase starts in the third epoch
    whole = build(**options)
    fit(whole, parts(16), callback=[SaveCheckpoint(epoch, tmp_path / "kept.ckpt")])
    torch.manual_seed(77)
    resumed = FAnoGan(**(TINY | options))
    fit(resumed, parts(16), checkpoint=tmp_path / "kept.ckpt")
    assert int(resumed.num_steps) == 16
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in resumed.state_dict().items())


def test_mixed_precision_trains_to_finite_weights() -> None:
    detector, record = build(epochs=4, critic_steps=1), Record()
    fit(detector, parts(8), precision="bf16-mixed", callback=[record])
    assert all(torch.isfinite(value).all() for value in detector.state_dict().values())
    assert all(p.dtype == torch.float32 for p in detector.parameters())
    assert record.changed(0) == {"critic", "generator"}
    assert record.changed(7) == {"encoder"}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("options", "region"), [({"score": "izi_f", "measure": "l1"}, False), ({"size": 64}, True)])
def test_exported_graph_gives_equal_scores_and_maps(options: dict[str, Any], region: bool) -> None:
    detector = build(**options)
    if region:
        mask = torch.zeros(72, 88, dtype=torch.bool)
        mask[8:60, 10:80] = True
        detector.preprocess.set_roi(mask)
    detector.calibrate([batch_of(parts(12))], alpha=0.2, guarantee="expected")
    detector.eval()
    graph = export_graph(detector).SerializeToString()
    noise = np.random.default_rng(0).integers(0, 256, (1, 100, 90, 3), dtype=np.uint8)
    for image in (parts(3, seed=50).numpy(), noise):
        result, exported = detector(torch.from_numpy(image)), score_bytes(graph, image)
        assert relative_difference(result.score.numpy(), exported.score).max() < 1e-4
        assert relative_difference(result.anomaly_map.numpy(), exported.anomaly_map).max() < 1e-4


@pytest.mark.slow
def test_short_training_detects_a_large_defect() -> None:
    detector = build(
        size=16,
        width=8,
        epochs=80,
        batch_size=8,
        critic_steps=1,
        measure="l1",
        learning_rate=3e-3,
        encoder_learning_rate=3e-3,
    )
    fit(detector, parts(24))
    good = parts(6, seed=500)
    defect = good.clone()
    defect[:, 20:44, 24:56] = torch.tensor([255, 60, 40], dtype=torch.uint8)
    detector.eval()
    for score in ("izi_f", "map"):
        detector.score = score  # type: ignore[assignment]
        with torch.no_grad():
            assert detector(defect).score.min() > detector(good).score.max(), score


@pytest.mark.parametrize(
    ("option", "value"), [("size", 100), ("size", 8), ("smooth", 4), ("gan_share", 0.0), ("gan_share", 1.0)]
)
def test_invalid_options_are_rejected(option: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{option} {value}: .*, e.g. "):
        FAnoGan(**{option: value})
