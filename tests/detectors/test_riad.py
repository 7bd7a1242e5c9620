"""RIAD: sets of regions, loss and map against the paper, training, and export."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from anomaly.detectors.riad import InpaintingUNet, Riad, draw_sets
from anomaly.detectors.tiling_support import Seamless, WindowsOnly
from anomaly.errors import UsageError
from anomaly.export.detector import export_graph
from anomaly.inference.difference import relative_difference
from anomaly.inference.scorer import score_bytes
from anomaly.nn.batch import Batch
from anomaly.nn.similarity import GradientSimilarity, Ssim
from anomaly.training.dataset import collate
from tests.plates import draw_part

TINY: dict[str, Any] = {"size": 64, "width": 8, "regions": (4, 8), "smooth": 5}


class Blur(nn.Module):
    """Network with a known output: the mean over 7×7 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 7, stride=1, padding=3)


def build(**options: Any) -> Riad:
    torch.manual_seed(0)
    detector = Riad(**(TINY | options))
    detector.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    return detector


def build_with_blur(**options: Any) -> Riad:
    detector = build(**options)
    detector.network = Blur()
    return detector.eval()


def parts(num: int) -> list[tuple[Tensor, str]]:
    return [(torch.from_numpy(draw_part(n)), str(n)) for n in range(num)]


def trained(detector: Riad, loader: Any, *, epochs: int) -> pl.Trainer:
    """Train on images; they are the stopping images too."""
    quiet: dict[str, Any] = {f"enable_{part}": False for part in ("checkpointing", "progress_bar", "model_summary")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, num_sanity_val_steps=0, **quiet)
        trainer.fit(detector, loader, loader)
    detector.eval()
    return trainer


def inpaint_reference(x: Tensor, sets: Tensor, *, num_sets: int) -> Tensor:
    x_hat = torch.zeros_like(x)
    for number in range(num_sets):
        visible = (sets != number).float()
        x_hat += functional.avg_pool2d(x * visible, 7, stride=1, padding=3) * (1 - visible)
    return x_hat


@pytest.mark.parametrize(("region", "num_sets"), [(1, 3), (2, 3), (4, 2), (16, 5)])
def test_sets_are_equal_parts_of_whole_cells(region: int, num_sets: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sets = draw_sets(size=64, region=region, num_sets=num_sets, generator=generator)
    cells = sets.view(64 // region, region, 64 // region, region)
    assert torch.equal(cells.amin(dim=(1, 3)), cells.amax(dim=(1, 3)))  # each cell is in exactly one set
    counts = cells[:, 0, :, 0].flatten().bincount()
    assert len(counts) == num_sets
    assert counts.max() - counts.min() <= 1
    assert not torch.equal(sets, draw_sets(size=64, region=region, num_sets=num_sets, generator=generator))


def test_every_set_is_inpainted_only_from_the_others() -> None:
    detector = build().eval()
    x = torch.rand(2, 3, 64, 64).mul(2).sub(1).requires_grad_()
    for sets in detector.sets:
        x_hat = detector.reconstruct(x, sets)
        weight = torch.randn_like(x_hat)
        for number in range(3):
            hidden = sets == number
            (gradient,) = torch.autograd.grad((x_hat * weight)[..., hidden].sum(), x, retain_graph=True)
            assert not gradient[..., hidden].any()
            assert (gradient[..., ~hidden] != 0).float().mean() > 0.5


@torch.no_grad()
def test_map_is_smoothed_mean_over_region_sizes() -> None:
    detector = build_with_blur(regions=(2, 8, 16), num_sets=4)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    residuals = []
    for sets in detector.sets:
        x_hat = inpaint_reference(x, sets, num_sets=4)
        residuals.append(1 - GradientSimilarity()((x + 1) / 2, (x_hat + 1) / 2).double())
    mean = sum(residuals) / 3
    result = detector.anomaly(x)
    for row, column in ((20, 30), (2, 61)):
        window = mean[:, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        if window[0].numel() == 25:
            assert torch.allclose(result.anomaly_map[:, row, column].double(), window.mean(dim=(1, 2)), atol=1e-6)
    padded = np.pad(mean.numpy(), ((0, 0), (2, 2), (2, 2)), mode="edge")
    corner = padded[:, :5, -5:].mean(axis=(1, 2))
    assert np.allclose(result.anomaly_map[:, 0, -1].numpy(), corner, atol=1e-6)
    assert torch.equal(result.score, result.anomaly_map.amax(dim=(1, 2)))
    assert (residuals[0] - residuals[2]).abs().mean() > 1e-3  # the sizes differ, so that other weights would fail


def test_loss_is_sum_of_gradients_ssim_and_squared_error() -> None:
    detector = build_with_blur(regions=(2, 4, 8, 16))
    batch = collate(parts(3))
    x = detector.preprocess(batch.image)
    generator = torch.Generator()
    drawn = set()
    for _ in range(12):
        generator.set_state(detector._generator.get_state())
        region = (2, 4, 8, 16)[int(torch.randint(4, (), generator=generator))]
        x_hat = inpaint_reference(x, draw_sets(size=64, region=region, num_sets=3, generator=generator), num_sets=3)
        image, reconstruction = (x + 1) / 2, (x_hat + 1) / 2
        expected = (1 - GradientSimilarity()(image, reconstruction)).mean() + (1 - Ssim()(image, reconstruction)).mean()
        expected = expected + functional.mse_loss(x_hat, x)
        assert detector.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-5)
        drawn.add(region)
    assert drawn == {2, 4, 8, 16}


def test_loss_in_half_precision_is_finite_and_close() -> None:
    losses = []
    for enabled in (False, True):
        detector = build().train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = detector.training_step(collate(parts(4)), 0)
        assert loss.dtype == torch.float32
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


@torch.no_grad()
def test_scoring_is_deterministic() -> None:
    detector, batch = build().eval(), collate(parts(2))
    first = detector(batch.image)
    torch.manual_seed(123)
    detector.training_step(batch, 0)  # uses the generator of training
    for again in (detector(batch.image), build().eval()(batch.image)):
        assert torch.equal(again.score, first.score)
        assert torch.equal(again.anomaly_map, first.anomaly_map)
    assert not torch.equal(build(seed=1).eval()(batch.image).score, first.score)


def test_resumed_training_continues_the_random_numbers() -> None:
    interrupted, resumed = build(), build()
    batch = collate(parts(2))
    interrupted.training_step(batch, 0)
    checkpoint: dict[str, Any] = {}
    interrupted.on_save_checkpoint(checkpoint)
    resumed.load_state_dict(interrupted.state_dict())
    resumed.on_load_checkpoint(checkpoint)
    for detector in (interrupted, resumed):
        detector.eval()
    for _ in range(4):
        assert torch.equal(interrupted.training_step(batch, 0), resumed.training_step(batch, 0))


def test_learning_rate_falls_to_a_tenth_after_five_sixths() -> None:
    detector = build(learning_rate=1e-3)
    detector._trainer = SimpleNamespace(estimated_stepping_batches=60)  # type: ignore[assignment]
    configured: Any = detector.configure_optimizers()
    rates = []
    for _ in range(60):
        rates.append(configured["optimizer"].param_groups[0]["lr"])
        configured["optimizer"].step()
        configured["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([1e-3] * 50 + [1e-4] * 10)


def test_training_stops_early_without_improvement() -> None:
    assert not build().needs_stopping_images
    assert build().configure_callbacks() == []
    torch.manual_seed(0)
    detector = Riad(**TINY, patience=2, epochs=40, learning_rate=1.0)  # too high to learn
    assert detector.needs_stopping_images
    loader: Any = DataLoader(parts(4), batch_size=4, collate_fn=collate)  # type: ignore[arg-type]
    trainer = trained(detector, loader, epochs=40)
    assert 3 <= trainer.current_epoch < 40
    batch: Batch = next(iter(loader))
    x = detector.preprocess(batch.image)
    with torch.no_grad():
        losses = [sum(detector._loss(x, sets).values()) for sets in detector.sets]
    assert trainer.callback_metrics["stopping"].item() == pytest.approx(float(sum(losses)) / 2, rel=1e-4)


@pytest.mark.slow
def test_standardised_score_is_in_units_of_the_training_spread() -> None:
    scores: tuple[Literal["standardised", "map"], ...] = ("standardised", "map")
    detectors = [Riad(**TINY, epochs=1, score=score) for score in scores]
    detectors[1].load_state_dict({k: v for k, v in detectors[0].state_dict().items() if not k.startswith("scale.")})
    images: Any = parts(8)
    for detector in detectors:
        trained(detector, DataLoader(images, batch_size=4, collate_fn=collate), epochs=1)
    x = detectors[0].preprocess(collate(images).image)
    with torch.no_grad():
        standard, plain = (detector.anomaly(x) for detector in detectors)
    r = plain.anomaly_map
    spread = r.std(dim=0, correction=0) + 0.5 * r.std(dim=0, correction=0).mean()
    assert torch.allclose(standard.score, ((r - r.mean(dim=0)) / spread).amax(dim=(1, 2)), atol=1e-3)
    assert torch.allclose(standard.anomaly_map, r, atol=1e-6)
    assert torch.equal(plain.score, r.amax(dim=(1, 2)))
    assert detectors[0].tiling == WindowsOnly("its score has a scale for each position in the input (use score map)")
    assert detectors[1].tiling == Seamless(stride=64)


@pytest.mark.slow
@pytest.mark.parametrize("score", ["map", "standardised"])
def test_exported_graph_agrees(score: str) -> None:
    torch.manual_seed(0)
    detector = build(resize="letterbox", regions=(8,), score=score).train()
    optimizer = torch.optim.Adam(detector.network.parameters(), lr=3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        detector.training_step(collate(parts(8)), 0).backward()
        optimizer.step()
    mask = torch.zeros(72, 88, dtype=torch.bool)
    mask[4:68, 6:80] = True
    detector.eval().preprocess.set_roi(mask)
    detector.calibrate([collate(parts(20))], alpha=0.1, guarantee="expected")
    graph = export_graph(detector).SerializeToString()
    random = np.random.default_rng(0)
    for shape in ((1, 72, 88, 3), (5, 72, 88, 3), (2, 100, 37, 3)):
        image = random.integers(0, 256, shape, dtype=np.uint8)
        image[0] = np.resize(draw_part(3), shape[1:])
        with torch.no_grad():
            trained = detector(torch.from_numpy(image))
        exported = score_bytes(graph, image)
        assert relative_difference(trained.score.numpy(), exported.score).max() < 1e-4
        assert relative_difference(trained.anomaly_map.numpy(), exported.anomaly_map).max() < 1e-4


def test_network_has_the_size_of_the_paper() -> None:
    with torch.device("meta"):
        network, x = InpaintingUNet(width=64), torch.zeros(1, 3, 256, 256)
    with FlopCounterMode(display=False) as counter:
        assert network(x).shape == x.shape
    assert counter.get_total_flops() / 2e9 == pytest.approx(54.5, abs=0.1)  # billions of multiplications


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 100}, "size 100: .* multiple of 16 .* e.g. 96"),
        ({"size": 16}, "size 16: .* e.g. 32"),
        ({"smooth": 4}, "smooth 4: .* e.g. 5"),
        ({"num_sets": 1}, "num_sets 1: .* e.g. 3"),
        ({"regions": ()}, "regions \\(\\): .* e.g. "),
        ({"regions": (2, 3)}, "region 3: .* divide size 64 .* e.g. 1, 2, 4"),
        ({"regions": (0,)}, "region 0: .* e.g. "),
        ({"regions": (64,)}, "region 64: .* at least 3 regions, e.g. "),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(**options)
