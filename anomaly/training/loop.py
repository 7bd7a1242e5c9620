"""The epochs of a detector: checkpoints, going on after an interruption, and what to do when a training cannot go on."""

from __future__ import annotations

import logging
import pickle
import signal
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from anomaly.detectors.base import Detector
from anomaly.errors import ModelError, TrainingError, UsageError
from anomaly.system.files import atomic_write
from anomaly.system.progress import Report, progress_bar
from anomaly.training.dataset import GoodData

INTERRUPTED, ASKED = "interrupted.ckpt", "anomaly"
"""The checkpoint of a fit that did not end, and the key in it under which stands what was asked for"""
CHECKPOINT_SECONDS = 60.0
"""How often a running fit is kept, at the end of an epoch: a lost process costs this and one epoch"""
Precision = Literal["fastest", "fp32", "bf16"]
TrainingDevice = Literal["auto", "cpu", "cuda"]


def train(
    detector: Detector, loaders: GoodData, *, out: Path, precision: Precision, device: TrainingDevice, resume: bool
) -> None:
    """Run the epochs of a detector; one that does not end leaves a checkpoint in `out` that `resume` goes on from.

    Raises:
        UsageError: `resume` without an interrupted fit, or with one of other images or options; no CUDA device.
        ModelError: a damaged checkpoint.
        TrainingError: a loss that is no finite number, or too little memory, with the batch size that fits.
        KeyboardInterrupt: the fit was interrupted; the checkpoint is written.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda asked for, but torch sees no CUDA device: repair its driver or take --device cpu")
    checkpoint = out / INTERRUPTED
    asked = {"options": dict(detector.hparams), "train": [str(s.path) for s in loaders.train]}
    if resume:
        _check_resumable(checkpoint, asked, detector)
    with progress_bar("train") as report, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")  # advice on loaders and loggers
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        trainer = pl.Trainer(
            max_epochs=detector.epochs,
            callbacks=[_Watch(report, checkpoint, asked, loaders)],
            **_options(precision=precision, device=device, out=out),
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(
                detector,
                train_dataloaders=loaders.train_dataloader(),
                val_dataloaders=loaders.stopping_dataloader() if detector.needs_stopping_images else None,
                ckpt_path=checkpoint if resume else None,
                weights_only=True,
            )
        except SystemExit as error:  # how the trainer ends an interrupted fit, with Ctrl-C switched off from then on
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from error
        except TrainingError as error:
            raise TrainingError(
                f"{error}; the weights before that step are in {checkpoint}: lower --model.learning-rate and start again,"
                " or go on with --resume and --precision fp32 if it was trained in bf16"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = batch_size_that_fits(detector, loaders, precision=precision, device=device, out=out)
            raise TrainingError(
                f"{detector.batch_size} images a batch of {detector.preprocess.size} pixels need more memory than there is; "
                + (f"{fits} fit: --model.batch-size {fits}" if fits else "not even 1 fits: make --model.size smaller")
            ) from error
    detector.to("cpu")


def _options(*, precision: Precision, device: TrainingDevice, out: Path) -> dict[str, Any]:
    """Options of every trainer here: one device, nothing printed, nothing written by itself."""
    fast = precision == "bf16" or (precision == "fastest" and has_fast_bf16())
    return {
        "accelerator": {"auto": "gpu" if torch.cuda.is_available() else "cpu", "cpu": "cpu", "cuda": "gpu"}[device],
        "devices": 1,
        "precision": "bf16-mixed" if fast else "32-true",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": out,
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of the GPU or of the host did not suffice."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def batch_size_that_fits(
    detector: Detector, loaders: GoodData, *, precision: Precision, device: TrainingDevice, out: Path
) -> int:
    """Find the largest half, quarter … of the batch size with which one step of a new, equal detector succeeds.

    Returns:
        The batch size, 0 where not even one image fits.
    """
    size = detector.batch_size // 2
    while size:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        trainer = pl.Trainer(
            max_epochs=1, limit_train_batches=1, **_options(precision=precision, device=device, out=out)
        )
        try:
            trainer.fit(type(detector)(**dict(detector.hparams)), train_dataloaders=loaders.probe_dataloader(size))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size //= 2
        else:
            return size
    return 0


def _check_resumable(checkpoint: Path, asked: dict[str, Any], detector: Detector) -> None:
    """Refuse to go on from a fit whose images may now be held out, or whose network or view of them is another."""
    if not checkpoint.is_file():
        raise UsageError(f"nothing to resume: {checkpoint.parent} has no {INTERRUPTED}; start without --resume")
    try:
        kept = torch.load(checkpoint, map_location="cpu", weights_only=True)
        found, state = kept[ASKED], kept["state_dict"]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise ModelError(f"{checkpoint} is damaged ({error}): start without --resume") from error
    for differs, what in (
        (found["train"] != asked["train"], "learned from other images"),
        (found["options"] != asked["options"], "had other options of the detector"),
        (not _sees_alike(detector, state), "saw another region or brightness"),
    ):
        if differs:
            raise UsageError(
                f"the fit that was interrupted in {checkpoint.parent} {what}:"
                " ask for the same folder, seed, groups and options as then, or start without --resume"
            )


def _sees_alike(detector: Detector, state: dict[str, torch.Tensor]) -> bool:
    """Whether a detector turns images into its input as one with this state does."""
    view = detector.preprocess.state_dict(prefix="preprocess.")
    pairs = [(value.float(), state.get(key, value).float()) for key, value in view.items()]
    return all(one.shape == other.shape and torch.allclose(one, other, rtol=1e-4) for one, other in pairs)


def has_fast_bf16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.12
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


class _Watch(Callback):
    """Moves the progress bar, and keeps a checkpoint, with what was asked for, now and then and when training stops."""

    def __init__(self, report: Report, checkpoint: Path, asked: dict[str, Any], loaders: GoodData) -> None:
        self._report = report
        self._loaders = loaders
        self._checkpoint = checkpoint
        self._asked = asked
        self._kept_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        num = int(trainer.num_training_batches)
        self._report(trainer.current_epoch * num + batch_idx + 1, num * (trainer.max_epochs or 1))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if time.monotonic() - self._kept_at >= CHECKPOINT_SECONDS:
            self._keep(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[ASKED] = self._asked

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loop = checkpoint["loops"]["fit_loop"]
        epochs = loop["epoch_progress"]["current"]
        if epochs["processed"] < epochs["ready"]:  # within a pass: the trainer asks for its remaining batches
            num_done = loop["epoch_loop.batch_progress"]["current"]["completed"]
            self._loaders.skip_batches(num_done, epoch=checkpoint["epoch"])

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, (KeyboardInterrupt, TrainingError)):
            self._keep(trainer)

    def _keep(self, trainer: pl.Trainer) -> None:
        with atomic_write(self._checkpoint) as partial:
            trainer.save_checkpoint(partial)
        self._kept_at = time.monotonic()
