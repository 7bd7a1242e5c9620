"""Interrupted training: Ctrl-C, a crash, a loss that is not finite, too little memory; and the resume."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anomaly.detectors.autoencoder import Autoencoder
from anomaly.errors import ModelError, TrainingError, UsageError
from anomaly.nn.batch import Batch
from anomaly.training.fitted_model import load_fitted_model
from anomaly.training.loop import INTERRUPTED
from tests.plates import TINY
from tests.training.quick_training import ONE_EPOCH, quick_fit

pytestmark = pytest.mark.slow


class Interrupted(Autoencoder):
    """Raises Ctrl-C in its second epoch while `armed`."""

    armed = True
    seen: list[int] = []  # noqa: RUF012 - replaced by the tests

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if self.armed and self.current_epoch == 1:
            raise KeyboardInterrupt
        self.seen.append(self.current_epoch)
        return super().training_step(batch, index)


def test_interrupted_fit_resumes_at_its_checkpoint(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, arguments = tmp_path / "run", {"detector": f"{__name__}:Interrupted", "options": TINY | {"epochs": 3}}
    with pytest.raises(UsageError, match="nothing to resume"):
        quick_fit(plain, out, resume=True, **arguments)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        quick_fit(plain, out, **arguments)
    assert signal.getsignal(signal.SIGINT) is handler
    assert (out / INTERRUPTED).is_file()
    with pytest.raises(ModelError, match="is not a fitted model"):
        load_fitted_model(out)
    assert set(Interrupted.seen) == {0}
    monkeypatch.setattr(Interrupted, "armed", False)
    monkeypatch.setattr(Interrupted, "seen", [])
    with pytest.raises(UsageError, match="used other training images"):  # now perhaps calibration images
        quick_fit(plain, out, resume=True, seed=1, **arguments)
    with pytest.raises(UsageError, match="had other options of the detector"):
        quick_fit(plain, out, resume=True, detector=arguments["detector"], options=TINY | {"width": 16})
    for view in ({"brightness": "levelled"}, {"roi": "10,10,60,50"}):
        with pytest.raises(UsageError, match="had another region of interest or brightness"):
            quick_fit(plain, out, resume=True, **arguments, **view)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / INTERRUPTED).write_bytes((out / INTERRUPTED).read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"is damaged .*: start without --resume"):
        quick_fit(plain, tmp_path / "bad", resume=True, **arguments)
    _, description = quick_fit(plain, out, resume=True, **arguments)
    assert set(Interrupted.seen) == {1, 2}
    assert description.calibration.num_images == 10
    assert not (out / INTERRUPTED).exists()
    with pytest.raises(UsageError, match="start without --resume"):
        quick_fit(plain, out, resume=True, **arguments)


class Diverging(Autoencoder):
    """Has a loss of NaN from the second epoch on."""

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss = super().training_step(batch, index)
        if self.current_epoch == 1:
            self.log("sharpness", loss * float("nan"))
        return loss


def test_nan_loss_names_its_term_and_keeps_the_weights_before(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"loss term 'sharpness' became nan in epoch 2; .*interrupted\.ckpt.*lower"):
        quick_fit(plain, out, detector=f"{__name__}:Diverging", options=TINY | {"epochs": 3})
    kept = torch.load(out / INTERRUPTED, weights_only=True)
    assert kept["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


class Hungry(Autoencoder):
    """Has memory for batches of two images."""

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
    arguments = {"detector": f"{__name__}:Hungry", "options": ONE_EPOCH}
    with pytest.raises(TrainingError, match=r"a batch of 8 images .* 2 images fit: --model\.batch-size 2"):
        quick_fit(plain, tmp_path / "run", **arguments)
    quick_fit(plain, tmp_path / "run", detector=arguments["detector"], options=ONE_EPOCH | {"batch_size": 2})
    monkeypatch.setattr(Hungry, "most", 0)
    with pytest.raises(TrainingError, match="1 image does not fit"):
        quick_fit(plain, tmp_path / "run", **arguments)


def test_other_training_errors_pass_unchanged(plain: Path, tmp_path: Path) -> None:
    class Broken(Autoencoder):
        def training_step(self, batch: Batch, index: int) -> Tensor:
            raise RuntimeError("shapes differ")

    globals()["Broken"] = Broken
    with pytest.raises(RuntimeError, match="shapes differ"):
        quick_fit(plain, tmp_path / "run", detector=f"{__name__}:Broken")


def test_killed_fit_resumes_from_its_last_checkpoint(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.training.loop.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(Interrupted, "seen", [])
    monkeypatch.setattr(Interrupted, "armed", False)
    arguments = {"detector": f"{__name__}:Interrupted", "options": TINY | {"epochs": 3}}
    whole, _ = quick_fit(plain, tmp_path / "whole", **arguments)

    def killed(self: Interrupted, batch: Batch, index: int) -> Tensor:
        if self.current_epoch == 2:
            raise SystemError("killed: nothing is written after this")
        return Autoencoder.training_step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Interrupted, "training_step", killed)
        with pytest.raises(SystemError):
            quick_fit(plain, tmp_path / "run", **arguments)
    monkeypatch.setattr(Interrupted, "seen", [])
    resumed, _ = quick_fit(plain, tmp_path / "run", resume=True, **arguments)
    assert set(Interrupted.seen) == {2}
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=1e-5, atol=1e-6)


def test_fit_interrupted_within_an_epoch_uses_each_image_once(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str]] = []

    def step(self: Interrupted, batch: Batch, index: int) -> Tensor:
        if self.armed and self.current_epoch == 1 and index == 2:
            raise KeyboardInterrupt
        seen.extend((self.current_epoch, path) for path in batch.path)
        return Autoencoder.training_step(self, batch, index)

    monkeypatch.setattr(Interrupted, "training_step", step)
    arguments = {"detector": f"{__name__}:Interrupted", "options": TINY | {"epochs": 2, "batch_size": 4}}
    with pytest.raises(KeyboardInterrupt):
        quick_fit(plain, tmp_path / "run", **arguments)
    monkeypatch.setattr(Interrupted, "armed", False)
    resumed, description = quick_fit(plain, tmp_path / "run", resume=True, **arguments)
    assert sorted(seen) == sorted((epoch, path) for epoch in (0, 1) for path in description.train)
    whole, _ = quick_fit(plain, tmp_path / "whole", **arguments)
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=1e-5, atol=1e-6)
