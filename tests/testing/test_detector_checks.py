"""Each check of the contract detects a planted fault in a detector that is otherwise correct."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.detectors.base import Anomaly, Detector
from anomaly.errors import AnomalyError, UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.testing import CHECKS, ContractError, _score_checks, _training_checks, check_detector, toy_training
from anomaly.testing.toy_training import Builder, draw_defects, draw_parts, train_on

pytestmark = pytest.mark.slow


class PixelMean(Detector):
    """Squared distance of each pixel to its mean over good images, learned in one pass without an optimiser."""

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


class LearnedFilter(Detector):
    """Reconstruction by one learned filter, with automatic optimisation."""

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


class ManualLearnedFilter(LearnedFilter):
    """Reconstruction by one learned filter, with manual optimisation."""

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


class PositionalArgument(PixelMean):
    def __init__(self, size: int = 32) -> None:
        super().__init__(size=size)


class MissingOption(LearnedFilter):
    """Saves one of its two options."""

    def __init__(self, *, size: int = 32, sharpness: float = 2.0) -> None:
        super(LearnedFilter, self).__init__(preprocess=small(size), epochs=1, batch_size=8)
        self.save_hyperparameters("size")


class IgnoredEpochs(LearnedFilter):
    """Has the option `epochs` and trains one epoch."""

    def __init__(self, *, epochs: int = 2) -> None:
        super(LearnedFilter, self).__init__(preprocess=small(32), epochs=1, batch_size=8)
        self.save_hyperparameters()


class SmallMap(PixelMean):
    def anomaly(self, x: Tensor) -> Anomaly:
        result = super().anomaly(x)
        return Anomaly(result.score, result.anomaly_map[:, ::2, ::2])


class BatchNormalised(PixelMean):
    def anomaly(self, x: Tensor) -> Anomaly:
        result = super().anomaly(x)
        return raw(result.anomaly_map / result.anomaly_map.mean())


class RandomScore(PixelMean):
    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(self.inside_roi(((x - self.mean) ** 2 + 1e-3 * torch.rand(1)).mean(dim=1)))


class UnseededTraining(PixelMean):
    """Uses a generator without a fixed seed."""

    def training_step(self, batch: Batch, index: int) -> None:
        generator = torch.Generator()
        generator.seed()
        super().training_step(batch, index)
        self.mean += 1e-3 * torch.randn(self.mean.shape, generator=generator)


class UntrainedScore(PixelMean):
    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(self.inside_roi((x**2).mean(dim=1)))


class UnusedLayer(LearnedFilter):
    """Has a layer that the loss does not use."""

    def __init__(self, *, size: int = 32) -> None:
        super().__init__(size=size)
        self.save_hyperparameters()
        self.head = nn.Conv2d(3, 3, 1)


class UnoptimisedBias(ManualLearnedFilter):
    """Does not give its bias to the optimiser."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.filter.weight], lr=1e-2)


class ClampedScore(PixelMean):
    """Clamps scores below a typical good part."""

    def forward(self, image: Tensor | list[Tensor]) -> Anomaly:
        return Anomaly(*(value.clamp(min=0) for value in super().forward(image)))


class PositionInBatch(PixelMean):
    """Adds the position in the batch to the score."""

    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(super().anomaly(x).anomaly_map + torch.arange(len(x))[:, None, None])


class UnregisteredScale(PixelMean):
    """Keeps its scale outside the state."""

    scale = 1.0

    def training_step(self, batch: Batch, index: int) -> None:
        super().training_step(batch, index)
        self.scale = 1 + float(self.mean.abs().mean())

    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(self.inside_roi(super().anomaly(x).anomaly_map * self.scale))


class MapOutsideRegion(PixelMean):
    """Ignores the region of interest in the map."""

    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(((x - self.mean) ** 2 + 0.1).mean(dim=1) + torch.linspace(0, 1, x.shape[3]))


class TrainingOutsideRegion(PixelMean):
    """Reads images without `preprocessed`."""

    def training_step(self, batch: Batch, index: int) -> None:
        super().training_step(batch, index)
        self.num += torch.as_tensor(batch.image[0]).float().mean()


class UnboundedDivision(PixelMean):
    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(self.inside_roi(((x - self.mean) / x.std(dim=(2, 3), keepdim=True)).square().mean(dim=1)))


class InvertedScore(PixelMean):
    def anomaly(self, x: Tensor) -> Anomaly:
        return raw(self.inside_roi(-super().anomaly(x).anomaly_map))


class BranchOnExport(PixelMean):
    """Computes another map in the exported graph."""

    def anomaly(self, x: Tensor) -> Anomaly:
        result = super().anomaly(x)
        if torch.compiler.is_exporting():
            return result
        return raw(result.anomaly_map + 0.1 * (result.anomaly_map > 0.5))


PLANTED: list[tuple[type[Detector], str, str]] = [
    (PositionalArgument, "constructor", "argument size is not keyword-only; write"),
    (MissingOption, "constructor", r"it saves \['size'\] of \['sharpness', 'size'\]; call self.save_hyperparameters"),
    (IgnoredEpochs, "constructor", "option epochs is 2, but the detector trains with 1; pass it on"),
    (SmallMap, "forward", r"anomaly_map is \(3, 16, 16\) torch.float32, expected \(3, 32, 32\)"),
    (BatchNormalised, "own_image", "anomaly_map of the same image differs|score of the same image differs"),
    (RandomScore, "deterministic", "two runs on the same images differ"),
    (UnseededTraining, "same_seed", r"1 tensors differ, first \['mean'\]"),
    (UntrainedScore, "learning", "it gives the same scores; let anomaly"),
    (UnusedLayer, "learning", r"2 trainable parameters never got a gradient, first \['head.weight'\]; use them"),
    (UnoptimisedBias, "learning", r"1 trainable parameters did not change in training, first \['filter.bias'\]"),
    (ClampedScore, "calibration", "the scores of calibrate and of forward differ .*; leave forward and calibrate"),
    (PositionInBatch, "equal_images", "12 copies of one image got different scores"),
    (UnregisteredScale, "state", "another detector with the same state gives another score"),
    (MapOutsideRegion, "region_of_interest", "the map outside the region is not its minimum; return self.inside_roi"),
    (
        TrainingOutsideRegion,
        "region_of_interest",
        r"change the training: 1 tensors, first \['num'\]",
    ),
    (UnboundedDivision, "finite", "score or map of 'black' images is not finite"),
    (InvertedScore, "defect", "a large red patch scores .*, a good image .*; higher is more anomalous"),
    (BranchOnExport, "export", "the graph's (score|anomaly_map) of .* images differs by"),
]


@pytest.mark.parametrize("correct", [PixelMean, ManualLearnedFilter])
def test_correct_detector_passes(correct: type[Detector]) -> None:
    check_detector(correct, options={"size": 32})


@pytest.mark.parametrize(("faulty", "check", "message"), PLANTED)
def test_check_detects_planted_fault(faulty: type[Detector], check: str, message: str) -> None:
    with pytest.raises(ContractError, match=f"^{faulty.__name__} fails '{check}': .*({message})"):
        CHECKS[check](Builder(faulty, {}))


def test_every_check_has_a_planted_fault() -> None:
    assert {check for _, check, _ in PLANTED} == set(CHECKS)


def test_report_contains_all_failures_and_errors() -> None:
    class Raising(InvertedScore):
        def calibrate(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("no such thing")

    with pytest.raises(ContractError) as raised:
        check_detector(Raising, options={}, checks=("forward", "calibration", "defect"))
    text = str(raised.value)
    assert text.startswith("2 checks failed:\n\nRaising fails 'calibration': it raised RuntimeError: no such thing (")
    assert "test_detector_checks.py:" in text
    assert "\n\nRaising fails 'defect': " in text
    assert isinstance(raised.value, AnomalyError)
    assert isinstance(raised.value, AssertionError)


def test_unknown_check_suggests_nearest_name() -> None:
    with pytest.raises(UsageError, match="no check 'expor'; nearest: 'export'"):
        check_detector(PixelMean, options={}, checks=("expor",))


def test_toy_training_drops_single_image_batch_and_provides_stopping_images() -> None:
    seen: list[tuple[str, int]] = []

    class RecordingBatches(LearnedFilter):
        needs_stopping_images = True

        def training_step(self, batch: Batch, index: int) -> Tensor | None:
            seen.append(("train", len(batch.path)))
            return super().training_step(batch, index)

        def validation_step(self, batch: Batch, index: int) -> None:
            seen.append(("stopping", len(batch.path)))

    gradients = train_on(RecordingBatches(epochs=1), draw_parts(9, seed=0))
    assert seen == [("train", 8), ("stopping", 4)]
    assert gradients == {"filter.weight", "filter.bias"}


def test_synthetic_parts_differ_and_have_large_defects() -> None:
    good = draw_parts(3, seed=0)
    assert torch.equal(good, draw_parts(3, seed=0))
    assert not torch.equal(good[0], good[1])
    changed = (draw_defects(good) != good).any(dim=3)
    assert 0.1 < changed.float().mean() < 0.2


@pytest.mark.parametrize("module", [_score_checks, _training_checks, toy_training])
def test_checks_do_not_import_pytest(module: ModuleType) -> None:
    nodes = list(ast.walk(ast.parse(inspect.getsource(module))))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {"torch", "anomaly.detectors.base"} <= imported
    assert not [name for name in imported if name.startswith(("pytest", "_pytest", "unittest"))]
