"""A training that does not end: interrupted, killed, diverged, out of memory; and going on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anomaly.detectors.autoencoder import Autoencoder
from anomaly.errors import ModelError, TrainingError, UsageError
from anomaly.nn.batch import Batch
from anomaly.training.fitted_model import load
from anomaly.training.loop import INTERRUPTED
from tests.plates import TINY
from tests.training.quick_training import ONE_EPOCH, quick


class Interrupted(Autoencoder):
    """Is interrupted in its second epoch while armed."""

    armed = True
    seen: list[int] = []  # noqa: RUF012 - the test looks at it

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if self.armed and self.current_epoch == 1:
            raise KeyboardInterrupt
        self.seen.append(self.current_epoch)
        return super().training_step(batch, index)


def test_interrupted_fit_goes_on_where_it_was(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, asked = tmp_path / "run", {"detector": f"{__name__}:Interrupted", "model": TINY | {"epochs": 3}}
    with pytest.raises(UsageError, match="nothing to resume"):
        quick(plain, out, resume=True, **asked)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        quick(plain, out, **asked)
    assert signal.getsignal(signal.SIGINT) is handler
    assert (out / INTERRUPTED).is_file()
    with pytest.raises(ModelError, match="no run folder"):
        load(out)
    assert set(Interrupted.seen) == {0}
    monkeypatch.setattr(Interrupted, "armed", False)
    monkeypatch.setattr(Interrupted, "seen", [])
    with pytest.raises(UsageError, match="learned from other images"):  # they may be held out now
        quick(plain, out, resume=True, seed=1, **asked)
    with pytest.raises(UsageError, match="had other options of the detector"):
        quick(plain, out, resume=True, detector=asked["detector"], model=TINY | {"width": 16})
    for view in ({"brightness": "levelled"}, {"roi": "10,10,60,50"}):
        with pytest.raises(UsageError, match="saw another region or brightness"):
            quick(plain, out, resume=True, **asked, **view)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / INTERRUPTED).write_bytes((out / INTERRUPTED).read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"is damaged .*: start without --resume"):
        quick(plain, tmp_path / "bad", resume=True, **asked)
    _, description = quick(plain, out, resume=True, **asked)
    assert set(Interrupted.seen) == {1, 2}
    assert description.calibration.num_images == 10
    assert not (out / INTERRUPTED).exists()
    with pytest.raises(UsageError, match="start without --resume"):
        quick(plain, out, resume=True, **asked)


class Diverging(Autoencoder):
    """Its loss is no number from the second epoch on."""

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss = super().training_step(batch, index)
        if self.current_epoch == 1:
            self.log("sharpness", loss * float("nan"))
        return loss


def test_loss_that_is_no_number_names_its_term_and_keeps_the_weights_before(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"loss term 'sharpness' became nan in epoch 2; .*interrupted\.ckpt.*lower"):
        quick(plain, out, detector=f"{__name__}:Diverging", model=TINY | {"epochs": 3})
    kept = torch.load(out / INTERRUPTED, weights_only=True)
    assert kept["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


class Hungry(Autoencoder):
    """Has memory for two images a batch."""

    error: type[Exception] = torch.OutOfMemoryError
    most = 2

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if len(batch.path) > self.most:
            raise self.error("CPU allocator: you tried to allocate; can't allocate memory")
        return super().training_step(batch, index)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_too_little_memory_names_the_batch_size_that_fits(
    plain: Path, tmp_path: Path, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hungry, "error", error)
    asked = {"detector": f"{__name__}:Hungry", "model": ONE_EPOCH}
    with pytest.raises(TrainingError, match=r"8 images a batch .* 2 fit: --model\.batch-size 2"):
        quick(plain, tmp_path / "run", **asked)
    quick(plain, tmp_path / "run", detector=asked["detector"], model=ONE_EPOCH | {"batch_size": 2})
    monkeypatch.setattr(Hungry, "most", 0)
    with pytest.raises(TrainingError, match="not even 1 fits"):
        quick(plain, tmp_path / "run", **asked)


def test_other_errors_of_training_are_not_taken_for_memory(plain: Path, tmp_path: Path) -> None:
    class Broken(Autoencoder):
        def training_step(self, batch: Batch, index: int) -> Tensor:
            raise RuntimeError("shapes differ")

    globals()["Broken"] = Broken
    with pytest.raises(RuntimeError, match="shapes differ"):
        quick(plain, tmp_path / "run", detector=f"{__name__}:Broken")


def test_killed_fit_goes_on_from_its_last_kept_epoch(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.training.loop.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(Interrupted, "seen", [])
    monkeypatch.setattr(Interrupted, "armed", False)
    asked = {"detector": f"{__name__}:Interrupted", "model": TINY | {"epochs": 3}}
    whole, _ = quick(plain, tmp_path / "whole", **asked)

    def killed(self: Interrupted, batch: Batch, index: int) -> Tensor:
        if self.current_epoch == 2:
            raise SystemError("as if the process had died: nothing is written after this")
        return Autoencoder.training_step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Interrupted, "training_step", killed)
        with pytest.raises(SystemError):
            quick(plain, tmp_path / "run", **asked)
    monkeypatch.setattr(Interrupted, "seen", [])
    resumed, _ = quick(plain, tmp_path / "run", resume=True, **asked)
    assert set(Interrupted.seen) == {2}
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=1e-5, atol=1e-6)


def test_fit_interrupted_within_a_pass_sees_each_image_once(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str]] = []

    def step(self: Interrupted, batch: Batch, index: int) -> Tensor:
        if self.armed and self.current_epoch == 1 and index == 2:
            raise KeyboardInterrupt
        seen.extend((self.current_epoch, path) for path in batch.path)
        return Autoencoder.training_step(self, batch, index)

    monkeypatch.setattr(Interrupted, "training_step", step)
    asked = {"detector": f"{__name__}:Interrupted", "model": TINY | {"epochs": 2, "batch_size": 4}}
    with pytest.raises(KeyboardInterrupt):
        quick(plain, tmp_path / "run", **asked)
    monkeypatch.setattr(Interrupted, "armed", False)
    resumed, description = quick(plain, tmp_path / "run", resume=True, **asked)
    assert sorted(seen) == sorted((epoch, path) for epoch in (0, 1) for path in description.train)
    whole, _ = quick(plain, tmp_path / "whole", **asked)
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=1e-5, atol=1e-6)
