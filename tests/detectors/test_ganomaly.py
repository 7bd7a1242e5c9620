"""GANomaly: losses, order of steps, collapse and score against the paper, resumed training, and export."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from anomaly.detectors import ganomaly
from anomaly.detectors.ganomaly import Ganomaly
from anomaly.errors import UsageError
from anomaly.export.detector import export_graph
from anomaly.inference.difference import relative_difference
from anomaly.inference.scorer import score_bytes
from anomaly.nn.batch import Batch
from anomaly.training.fit import fit_model
from anomaly.training.fitted_model import load_fitted_model
from tests.plates import draw_part

TINY: dict[str, Any] = {
    "size": 64, "width": 4, "latent": 16, "measure": "l1", "smooth": 3, "learning_rate": 2e-3, "batch_size": 8
}  # fmt: skip


def build(**options: Any) -> Ganomaly:
    torch.manual_seed(0)
    return Ganomaly(**(TINY | options))


def parts(num: int, *, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.stack([draw_part(seed + n) for n in range(num)]))


def batches_of(image: Tensor, batch_size: int) -> DataLoader[Any]:
    def collate(items: list[int]) -> Batch:
        chosen = image[items]
        label = torch.zeros(len(items), dtype=torch.bool)
        return Batch(chosen, torch.zeros(chosen.shape[:3], dtype=torch.bool), label, [str(n) for n in items])

    numbers: Any = range(len(image))
    return DataLoader(numbers, batch_size=batch_size, collate_fn=collate)


def train(
    detector: Ganomaly, image: Tensor, *, callbacks: tuple[pl.Callback, ...] = (), resume: Path | None = None
) -> pl.Trainer:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer = pl.Trainer(
            max_epochs=detector.epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
        )
        trainer.fit(detector, batches_of(image, detector.batch_size), ckpt_path=resume, weights_only=True)
    return trainer


def one_step(detector: Ganomaly, image: Tensor) -> dict[str, float]:
    """Train on one batch, and return the logged terms."""
    terms: dict[str, float] = {}
    detector.log = lambda name, value, **_: terms.update({name: float(value.detach())})  # type: ignore[method-assign]
    assert detector.epochs == 1
    assert len(image) <= detector.batch_size
    train(detector, image)
    return terms


def test_input_range_is_minus_one_to_one() -> None:
    ramp = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 70, 70, 3)
    x = build().preprocess(ramp)
    assert torch.allclose(x[0], torch.tensor(-1.0))
    assert torch.allclose(x[1], torch.tensor(1.0))


def test_networks_equal_the_paper() -> None:
    detector = Ganomaly(size=32, width=64, latent=100)
    shapes = [tuple(p.shape) for p in detector.generator.encoder.parameters() if p.ndim == 4]
    assert shapes == [(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (100, 256, 4, 4)]
    shapes = [tuple(p.shape) for p in detector.generator.decoder.parameters() if p.ndim == 4]
    assert shapes == [(100, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (64, 3, 4, 4)]
    assert tuple(detector.discriminator.head.weight.shape) == (1, 256, 4, 4)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert detector.generator.encoder(x).shape == (2, 100, 1, 1)
    assert detector.generator.decoder(detector.generator.encoder(x)).abs().max() <= 1
    for module in detector.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
    norms = [m for m in detector.generator.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 2  # no norm after the first and the last convolution
    weights = torch.cat([norm.weight for norm in norms])
    assert weights.mean().item() == pytest.approx(1, abs=0.01)
    assert weights.std().item() == pytest.approx(0.02, rel=0.2)


def test_losses_equal_the_paper() -> None:
    detector = build(epochs=1)
    before = copy.deepcopy(detector).train()
    terms = one_step(detector, parts(6))
    x = before.preprocess(parts(6))
    z = before.generator.encoder(x)
    x_hat = before.generator.decoder(z)
    z_hat = before.generator.second_encoder(x_hat)
    f, f_hat = before.discriminator.features(x), before.discriminator.features(x_hat)
    real, fake = (torch.sigmoid(before.discriminator.head(features)) for features in (f, f_hat))
    assert f.shape == (6, 32, 4, 4)
    assert terms == pytest.approx(
        {
            "adversarial": ((f - f_hat) ** 2).mean().item(),
            "reconstruction": (x - x_hat).abs().mean().item(),
            "latent": ((z - z_hat) ** 2).mean().item(),
            # of the reconstruction before the generator's step
            "discriminator": -0.5 * (torch.log(real).mean() + torch.log(1 - fake).mean()).item(),
        },
        rel=1e-4,
    )
    assert abs(terms["adversarial"] - ((real - fake) ** 2).mean().item()) > 0.01  # not of the outputs


def test_adversarial_gradient_uses_features_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ganomaly, "RECONSTRUCTION", 0.0)
    monkeypatch.setattr(ganomaly, "LATENT", 0.0)
    states = []
    for gain in (1.0, -30.0):
        detector = build(epochs=1)
        detector.discriminator.head.weight.data.mul_(gain)
        before = copy.deepcopy(detector.generator)
        one_step(detector, parts(6))
        for part, changes in (("encoder", True), ("decoder", True), ("second_encoder", False)):
            pairs = zip(getattr(before, part).parameters(), getattr(detector.generator, part).parameters(), strict=True)
            assert all(torch.equal(old, new) is not changes for old, new in pairs)
        states.append(detector.generator.state_dict())
    # the last layer of the discriminator does not affect it
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_generator_steps_before_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build(epochs=2)
    networks = {id(next(getattr(detector, name).parameters())): name for name in ("generator", "discriminator")}
    order = []

    def record(optimizer: torch.optim.Optimizer) -> None:
        order.append(networks[id(optimizer.param_groups[0]["params"][0])])

    monkeypatch.setattr(detector, "on_before_optimizer_step", record)
    train(detector, parts(16))
    assert order == ["generator", "discriminator"] * 4


def test_one_step_changes_every_parameter() -> None:
    detector = build(epochs=1)
    before = {name: p.detach().clone() for name, p in detector.named_parameters()}
    one_step(detector, parts(6))
    assert all(p.requires_grad for p in detector.parameters())
    assert not [name for name, p in detector.named_parameters() if torch.equal(p, before[name])]


@pytest.mark.parametrize("certainty", [5.0, 50.0])
def test_collapsed_discriminator_is_initialised_again(certainty: float) -> None:
    detector = build(epochs=1)
    probe = copy.deepcopy(detector).train()
    with torch.no_grad():
        x = probe.preprocess(parts(6))
        x_hat = probe.generator(x, roi=probe.preprocess.roi)[0]
        features = torch.cat([probe.discriminator.features(image).flatten(1) for image in (x, x_hat)])
        output = torch.cat((torch.ones(6), -torch.ones(6)))
        weight = certainty * torch.linalg.lstsq(features.double(), output.double()[:, None], driver="gelsd").solution
        detector.discriminator.head.weight.copy_(weight.view(1, -1, 4, 4))
    drawn = detector.discriminator.head.weight.detach().clone()
    moments: list[int] = []
    detector.on_train_batch_end = lambda *_: moments.extend(len(o.state) for o in detector.optimizers())  # type: ignore[method-assign,union-attr]
    terms = one_step(detector, parts(6))
    weight = detector.discriminator.head.weight.detach()
    assert terms["discriminator"] == pytest.approx(np.log1p(np.exp(-certainty)), rel=1e-2, abs=1e-9)
    assert moments[0] > 0
    if certainty == 5.0:  # loss 7e-3: not collapsed
        assert (weight - drawn).abs().max() < 0.01
        assert moments[1] > 0
    else:
        assert (weight - drawn).abs().max() > 0.03
        assert weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert torch.equal(detector.discriminator.state_dict()["features.1.1.bias"], torch.zeros(8))
        assert moments[1] == 0


@pytest.mark.parametrize(("num", "steps"), [(9, 2), (5, 1), (3, 1), (1, 0)])
def test_single_image_batches_are_skipped(num: int, steps: int) -> None:
    detector = build(epochs=2, batch_size=4)
    before = copy.deepcopy(detector.state_dict())
    trainer = train(detector, parts(num))
    assert trainer.global_step == 2 * 2 * steps  # epochs, optimisers
    assert torch.equal(detector.generator.encoder.head.weight, before["generator.encoder.head.weight"]) is not bool(
        steps
    )
    assert all(torch.isfinite(value).all() for value in detector.state_dict().values())


class SaveCheckpoint(pl.Callback):
    """Save a checkpoint at the end of an epoch."""

    def __init__(self, path: Path, epoch: int) -> None:
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


def test_resumed_training_gives_the_weights_of_an_uninterrupted_training(tmp_path: Path) -> None:
    whole = build(epochs=4, schedule="cosine")
    train(whole, parts(20), callbacks=(SaveCheckpoint(tmp_path / "kept.ckpt", 1),))
    torch.manual_seed(7)
    resumed = Ganomaly(**dict(whole.hparams))
    trainer = train(resumed, parts(20), resume=tmp_path / "kept.ckpt")
    assert trainer.current_epoch == 4
    for key, value in whole.state_dict().items():  # rounding of a restored Adam; a lost moment would be 1e-3
        assert torch.allclose(value, resumed.state_dict()[key], rtol=1e-5, atol=2e-6), key


@torch.no_grad()
def test_latent_score_is_distance_of_codes() -> None:
    detector = build(score="latent").eval()
    x = detector.preprocess(parts(3))
    z = detector.generator.encoder(x)
    z_hat = detector.generator.second_encoder(detector.generator.decoder(z))
    result = detector.anomaly(x)
    assert torch.allclose(result.score, ((z - z_hat) ** 2).flatten(1).mean(dim=1), rtol=1e-5)
    assert result.anomaly_map.shape == (3, 64, 64)


def test_map_is_standardised_residual() -> None:
    detector = build(epochs=1, smooth=5)
    train(detector, parts(12))
    detector.eval()
    with torch.no_grad():
        x = detector.preprocess(parts(12))
        z = detector.generator.encoder(x)
        r = (x - detector.generator.decoder(z)).abs().mean(dim=1)
        here = r[:, 18:23, 28:33].mean(dim=(1, 2))
        every = functional.avg_pool2d(functional.pad(r, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
        spread = here.std(correction=0) + 0.5 * every.std(dim=0, correction=0).mean()
        result = detector.anomaly(x)
    assert result.anomaly_map[:, 20, 30].numpy() == pytest.approx(((here - here.mean()) / spread).numpy(), abs=1e-3)
    assert torch.equal(result.score, result.anomaly_map.amax(dim=(1, 2)))
    plain = build(epochs=1, smooth=5, standardise=False)
    train(plain, parts(12))
    with torch.no_grad():
        assert torch.allclose(plain.eval().anomaly(x).anomaly_map, every, atol=1e-5)


@pytest.mark.parametrize("measure", ["l1", "msgms"])
@pytest.mark.parametrize("score", ["latent", "map"])
def test_pixels_outside_the_region_change_neither_training_nor_scores(score: str, measure: str) -> None:
    mask = torch.zeros(72, 88, dtype=torch.bool)
    mask[8:50, 10:60] = True
    image = parts(6)
    noise = torch.randint(0, 256, image.shape, dtype=torch.uint8)
    states, terms = [], []
    for images in (image, torch.where(mask[None, :, :, None], image, noise)):
        detector = build(epochs=1, score=score, measure=measure)
        detector.preprocess.set_roi(mask)
        terms.append(one_step(detector, images))
        with torch.no_grad():
            result = detector.eval()(images)
        states.append([*detector.state_dict().values(), *result])
    assert terms[0] == terms[1]
    assert all(torch.equal(one, two) for one, two in zip(*states, strict=True))
    outside = result.anomaly_map[:, ~detector.preprocess.roi]
    assert torch.equal(outside, result.anomaly_map.amin(dim=(1, 2))[:, None].expand_as(outside))
    assert terms[0] != one_step(build(epochs=1), image)


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["l1", "msgms"])
def test_short_training_detects_a_large_defect(measure: str) -> None:
    detector = build(epochs=10, measure=measure, learning_rate=3e-3)
    train(detector, parts(24))
    good = parts(6, seed=500)
    defect = good.clone()
    defect[:, 20:44, 24:56] = torch.tensor([255, 60, 40], dtype=torch.uint8)
    with torch.no_grad():
        low, high = detector.eval()(good), detector(defect)
    assert high.score.min() > 1.5 * low.score.max()
    peak = high.anomaly_map.flatten(1).argmax(dim=1)
    assert ((peak // 64 > 15) & (peak // 64 < 42) & (peak % 64 > 14) & (peak % 64 < 44)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "roi"),
    [({"score": "latent", "resize": "letterbox"}, "10,15,70,50"), ({"measure": "msgms", "schedule": "cosine"}, None)],
)
def test_mixed_precision_training_can_be_exported(
    options: dict[str, Any], roi: str | None, category: Path, tmp_path: Path
) -> None:
    model = TINY | {"epochs": 3} | options
    name = "anomaly.detectors.ganomaly:Ganomaly"
    detector = load_fitted_model(
        fit_model(category, out=tmp_path, detector=name, options=model, roi=roi, precision="bf16").folder
    ).detector
    assert all(torch.isfinite(value).all() for value in detector.state_dict().values())
    graph = export_graph(detector).SerializeToString()
    for num, height, width in ((1, 64, 64), (3, 100, 90), (2, 301, 47)):
        image = np.random.default_rng(num).integers(0, 256, (num, height, width, 3), dtype=np.uint8)
        with torch.no_grad():
            trained = detector(torch.from_numpy(image))
        exported = score_bytes(graph, image)
        assert relative_difference(trained.score.numpy(), exported.score).max() < 1e-4
        assert relative_difference(trained.anomaly_map.numpy(), exported.anomaly_map).max() < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 48}, "size 48: .*, e.g. 32"),
        ({"size": 8}, "size 8: .*, e.g. 16"),
        ({"smooth": 4}, "smooth 4: .*, e.g. 5"),
        ({"batch_size": 1}, "batch_size 1: .*, e.g. 2"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Ganomaly(**options)
