"""The contract's checks find what they look for: one planted fault for each, in a detector that is sound without it."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import anomaly.testing.checks
import anomaly.testing.toy_training
from anomaly.detectors.base import Anomaly, Detector
from anomaly.errors import AnomalyError, UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.testing.checks import CHECKS, check_detector
from anomaly.testing.toy_training import Builder, ContractError, draw_defects, draw_parts, train_on


class PixelMean(Detector):
    """Squared distance of each pixel to its mean over the good images: no optimiser, one pass."""

    mean: Tensor
    num: Tensor

    def __init__(self, *, size: int = 32, resize: Resize = "stretch", epochs: int = 1, batch_size: int = 8) -> None:
        preprocess = Preprocess(size=(size, size), resize=resize, mean=(0.5,) * 3, std=(0.25,) * 3)
        super().__init__(preprocess=preprocess, epochs=epochs, batch_size=batch_size)
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.register_buffer("mean", torch.zeros(3, size, size))
        self.register_buffer("num", torch.zeros(()))

    def training_step(self, batch: Batch, index: int) -> None:
        for x in self.preprocessed(batch):
            self.num += 1
            self.mean += (x - self.mean) / self.num

    def configure_optimizers(self) -> None:
        pass

    def anomaly(self, x: Tensor) -> Anomaly:
        anomaly_map = self.inside_roi(((x - self.mean) ** 2).mean(dim=1))
        return Anomaly(anomaly_map.amax(dim=(1, 2)), anomaly_map)


class Blurred(Detector):
    """Reconstruction by one learned filter a channel, optimised automatically."""

    def __init__(self, *, size: int = 32, epochs: int = 3, batch_size: int = 8) -> None:
        preprocess = Preprocess(size=(size, size), resize="stretch", mean=(0.5,) * 3, std=(0.25,) * 3)
        super().__init__(preprocess=preprocess, epochs=epochs, batch_size=batch_size)
        self.save_hyperparameters()
        self.filter = nn.Conv2d(3, 3, 5, padding=2)

    def training_step(self, batch: Batch, index: int) -> Tensor | None:
        x = self.preprocessed(batch)
        loss = functional.mse_loss(self.filter(x), x)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.filter.parameters(), lr=1e-2)

    def anomaly(self, x: Tensor) -> Anomaly:
        anomaly_map = self.inside_roi(((x - self.filter(x)) ** 2).mean(dim=1))
        return Anomaly(anomaly_map.amax(dim=(1, 2)), anomaly_map)


class BlurredByHand(Blurred):
    """The same, optimised by hand."""

    def __init__(self, *, size: int = 32, epochs: int = 3, batch_size: int = 8) -> None:
        super().__init__(size=size, epochs=epochs, batch_size=batch_size)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, index: int) -> None:
        optimizer: Any = self.optimizers()
        loss = super().training_step(batch, index)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def small(size: int) -> Preprocess:
    return Preprocess(size=(size, size), resize="stretch", mean=(0.5,) * 3, std=(0.25,) * 3)


def raw(anomaly_map: Tensor) -> Anomaly:
    return Anomaly(anomaly_map.amax(dim=(1, 2)), anomaly_map)


class Positional(PixelMean):
    def __init__(self, size: int = 32) -> None:
        super().__init__(size=size)


class Forgetful(Blurred):
    """Keeps one of its two options."""

    def __init__(self, *, size: int = 32, sharpness: float = 2.0) -> None:
        super(Blurred, self).__init__(preprocess=small(size), epochs=1, batch_size=8)
        self.save_hyperparameters("size")


class Deaf(Blurred):
    """Takes `epochs` and trains one."""

    def __init__(self, *, epochs: int = 2) -> None:
        super(Blurred, self).__init__(preprocess=small(32), epochs=1, batch_size=8)
        self.save_hyperparameters()


class FlatMap(PixelMean):
    def anomaly(self, x: Tensor) -> Anomaly:
        said = super().anomaly(x)
        return Anomaly(said.score, said.anomaly_map[:, ::2, ::2])


class BatchNormalised(PixelMean):
    def anomaly(self, x: Tensor) -> Anomaly:
        said = super().anomaly(x)
        return raw(said.anomaly_map / said.anomaly_map.mean())


class Dropping(PixelMean):
    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(self.inside_roi(((x - self.mean) ** 2 + 1e-3 * torch.rand(1)).mean(dim=1)))


class Unordered(PixelMean):
    """Draws from a generator that no seed reaches."""

    def training_step(self, batch: Batch, index: int) -> None:
        generator = torch.Generator()
        generator.seed()
        super().training_step(batch, index)
        self.mean += 1e-3 * torch.randn(self.mean.shape, generator=generator)


class Stubborn(PixelMean):
    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(self.inside_roi((x**2).mean(dim=1)))


class Idle(Blurred):
    """Has a layer that no loss reaches."""

    def __init__(self, *, size: int = 32) -> None:
        super().__init__(size=size)
        self.save_hyperparameters()
        self.head = nn.Conv2d(3, 3, 1)


class HalfOptimised(BlurredByHand):
    """Leaves its bias out of the optimiser."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.filter.weight], lr=1e-2)


class Clamped(PixelMean):
    """Shows nothing below a typical good part."""

    def forward(self, image: Tensor | list[Tensor]) -> Anomaly:
        return Anomaly(*(value.clamp(min=0) for value in super().forward(image)))


class Numbered(PixelMean):
    """Scores by the place in the batch."""

    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(super().anomaly(x).anomaly_map + torch.arange(len(x))[:, None, None])


class Hiding(PixelMean):
    """Keeps its scale outside of the state."""

    scale = 1.0

    def training_step(self, batch: Batch, index: int) -> None:
        super().training_step(batch, index)
        self.scale = 1 + float(self.mean.abs().mean())

    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(self.inside_roi(super().anomaly(x).anomaly_map * self.scale))


class Borderless(PixelMean):
    """Does not ask for the region of interest."""

    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(((x - self.mean) ** 2 + 0.1).mean(dim=1) + torch.linspace(0, 1, x.shape[3]))


class Peeking(PixelMean):
    """Learns from the images beside `preprocessed`."""

    def training_step(self, batch: Batch, index: int) -> None:
        super().training_step(batch, index)
        self.num += torch.as_tensor(batch.image[0]).float().mean()


class Dividing(PixelMean):
    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(self.inside_roi(((x - self.mean) / x.std(dim=(2, 3), keepdim=True)).square().mean(dim=1)))


class Inverted(PixelMean):
    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(self.inside_roi(-super().anomaly(x).anomaly_map))


class Branching(PixelMean):
    """Chooses by a value: a graph holds one of the branches only."""

    def anomaly(self, x: Tensor) -> Anomaly:
        said = super().anomaly(x)
        if torch.compiler.is_exporting():
            return said
        return raw(said.anomaly_map + 0.1 * (said.anomaly_map > 0.5))


PLANTED: list[tuple[type[Detector], str, str]] = [
    (Positional, "constructor", "argument size is not keyword-only; write"),
    (Forgetful, "constructor", r"it keeps \['size'\] of \['sharpness', 'size'\]; call self.save_hyperparameters"),
    (Deaf, "constructor", "option epochs is 2, but the detector trains with 1; pass it on"),
    (FlatMap, "forward", r"anomaly_map is \(3, 16, 16\) torch.float32, wanted \(3, 32, 32\)"),
    (BatchNormalised, "own_image", "anomaly_map of the same image differs|score of the same image differs"),
    (Dropping, "deterministic", "two runs on the same images differ"),
    (Unordered, "same_seed", r"1 tensors differ, first \['mean'\]"),
    (Stubborn, "learning", "it gives the same scores; let anomaly"),
    (Idle, "learning", r"2 trainable parameters never got a gradient, first \['head.weight'\]; use them"),
    (HalfOptimised, "learning", r"1 trainable parameters are as before the training, first \['filter.bias'\]"),
    (Clamped, "calibration", "calibrate gives scores that forward does not repeat .*; leave forward and calibrate"),
    (Numbered, "equal_images", "12 copies of one image got different scores"),
    (Hiding, "state", "another detector with the same state gives another score"),
    (Borderless, "region_of_interest", "the map outside the region is not its minimum; return self.inside_roi"),
    (Peeking, "region_of_interest", r"changes what is learned: 1 tensors, first \['num'\]"),
    (Dividing, "finite", "score or map of images of kind 'black' is no finite number"),
    (Inverted, "defect", "a large red patch scores .*, a good image .*; higher is more anomalous"),
    (Branching, "export", "the graph's (score|anomaly_map) of images of kind .* differs by"),
]


@pytest.mark.parametrize("sound", [PixelMean, BlurredByHand])
def test_a_sound_detector_passes(sound: type[Detector]) -> None:
    check_detector(sound, options={"size": 32})


@pytest.mark.parametrize(("broken", "check", "told"), PLANTED)
def test_check_finds_a_planted_fault(broken: type[Detector], check: str, told: str) -> None:
    with pytest.raises(ContractError, match=f"^{broken.__name__} fails '{check}': .*({told})"):
        CHECKS[check](Builder(broken, {}))


def test_every_check_has_a_fault_that_it_finds() -> None:
    assert {check for _, check, _ in PLANTED} == set(CHECKS)


def test_failures_are_told_together_with_what_a_detector_raised() -> None:
    class Raising(Inverted):
        def calibrate(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("no such thing")

    with pytest.raises(ContractError) as told:
        check_detector(Raising, options={}, checks=("forward", "calibration", "defect"))
    text = str(told.value)
    assert text.startswith("2 checks failed:\n\nRaising fails 'calibration': it raised RuntimeError: no such thing (")
    assert "test_testing.py:" in text
    assert "\n\nRaising fails 'defect': " in text
    assert isinstance(told.value, AnomalyError)
    assert isinstance(told.value, AssertionError)


def test_unknown_check_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no check 'expor'; nearest: 'export'"):
        check_detector(PixelMean, options={}, checks=("expor",))


def test_training_demands_no_batch_of_one_and_gives_stopping_images() -> None:
    seen: list[tuple[str, int]] = []

    class Noting(Blurred):
        needs_stopping_images = True

        def training_step(self, batch: Batch, index: int) -> Tensor | None:
            seen.append(("train", len(batch.path)))
            return super().training_step(batch, index)

        def validation_step(self, batch: Batch, index: int) -> None:
            seen.append(("stopping", len(batch.path)))

    gradients = train_on(Noting(epochs=1), draw_parts(9, seed=0))
    assert seen == [("train", 8), ("stopping", 4)]
    assert gradients == {"filter.weight", "filter.bias"}


def test_made_up_parts_differ_and_their_defects_are_large() -> None:
    good = draw_parts(3, seed=0)
    assert torch.equal(good, draw_parts(3, seed=0))
    assert not torch.equal(good[0], good[1])
    changed = (draw_defects(good) != good).any(dim=3)
    assert 0.1 < changed.float().mean() < 0.2


@pytest.mark.parametrize("module", [anomaly.testing.checks, anomaly.testing.toy_training])
def test_checks_need_no_pytest(module: ModuleType) -> None:
    nodes = list(ast.walk(ast.parse(inspect.getsource(module))))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {"torch", "anomaly.errors"} <= imported
    assert not [name for name in imported if name.startswith(("pytest", "_pytest", "unittest"))]
