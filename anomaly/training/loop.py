"""Training loop of a model: epochs, checkpoints, resume, and the errors of a failed training."""

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

from anomaly.errors import ModelError, TrainingError, UsageError
from anomaly.nn.trainable import Trainable
from anomaly.system.files import atomic_write
from anomaly.system.progress import Report, progress_bar
from anomaly.training.dataset import GoodData

INTERRUPTED = "interrupted.ckpt"
"""File name of the checkpoint of an unfinished fit"""
REQUEST = "anomaly"
"""Key of the requested images and options in the checkpoint"""
CHECKPOINT_SECONDS = 60.0
"""Least time between two checkpoints, written at the end of an epoch"""
Precision = Literal["fastest", "fp32", "bf16"]
TrainingDevice = Literal["auto", "cpu", "cuda"]


def train(
    model: Trainable, loaders: GoodData, *, out: Path, precision: Precision, device: TrainingDevice, resume: bool
) -> None:
    """Train a model for its epochs. An unfinished training leaves a checkpoint in `out`, from which `resume` continues.

    Args:
        model: untrained model.
        loaders: training and early-stopping batches.
        out: folder of the checkpoint.
        precision: number format of training.
        device: training device.
        resume: whether to continue from the checkpoint in `out`.

    Raises:
        UsageError: `resume` without a checkpoint, or with other images or options; no CUDA device.
        ModelError: a damaged checkpoint.
        TrainingError: a loss that is not finite, or too little memory, with the batch size that fits.
        KeyboardInterrupt: Ctrl-C; the checkpoint is written.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda requested, but torch sees no CUDA device: repair its driver or use --device cpu")
    checkpoint = out / INTERRUPTED
    request = {"options": dict(model.hparams), "train": [str(s.path) for s in loaders.train]}
    if resume:
        _check_resumable(checkpoint, request, model)
    with progress_bar("train") as report, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")  # advice on loaders and loggers
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        trainer = pl.Trainer(
            max_epochs=model.epochs,
            callbacks=[_Checkpoints(report, checkpoint, request, loaders)],
            **_trainer_options(precision=precision, device=device, out=out),
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(
                model,
                train_dataloaders=loaders.train_dataloader(),
                val_dataloaders=loaders.stopping_dataloader() if model.needs_stopping_images else None,
                ckpt_path=checkpoint if resume else None,
                weights_only=True,
            )
        except SystemExit as error:  # the trainer's end after Ctrl-C, which leaves SIGINT ignored
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from error
        except TrainingError as error:
            raise TrainingError(
                f"{error}; {checkpoint} has the weights before that step: lower --model.learning-rate and start again."
                " After a training in bf16, --resume --precision fp32 can continue."
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            smaller = batch_size_that_fits(model, loaders, precision=precision, device=device, out=out)
            raise TrainingError(
                f"a batch of {model.batch_size} images of {model.preprocess.size} pixels exceeds the memory; "
                + (
                    f"{smaller} images fit: --model.batch-size {smaller}"
                    if smaller
                    else "1 image does not fit: make --model.size smaller"
                )
            ) from error
    model.to("cpu")


def _trainer_options(*, precision: Precision, device: TrainingDevice, out: Path) -> dict[str, Any]:
    """Options of every trainer: one device, no output, no files."""
    use_bf16 = precision == "bf16" or (precision == "fastest" and has_fast_bf16())
    return {
        "accelerator": {"auto": "gpu" if torch.cuda.is_available() else "cpu", "cpu": "cpu", "cuda": "gpu"}[device],
        "devices": 1,
        "precision": "bf16-mixed" if use_bf16 else "32-true",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": out,
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports too little memory of the GPU or the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def batch_size_that_fits(
    model: Trainable, loaders: GoodData, *, precision: Precision, device: TrainingDevice, out: Path
) -> int | None:
    """Find the largest half, quarter … of the batch size for which one step of a new, equal model fits into memory.

    Returns:
        The batch size; None where a single image does not fit.
    """
    size = model.batch_size // 2
    while size:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        trainer = pl.Trainer(
            max_epochs=1, limit_train_batches=1, **_trainer_options(precision=precision, device=device, out=out)
        )
        try:
            trainer.fit(type(model)(**dict(model.hparams)), train_dataloaders=loaders.probe_dataloader(size))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size //= 2
        else:
            return size
    return None


def _check_resumable(checkpoint: Path, request: dict[str, Any], model: Trainable) -> None:
    """Refuse to continue a fit of other images, another network or another preprocessing.

    Its training images could now be calibration images.
    """
    if not checkpoint.is_file():
        raise UsageError(f"nothing to resume: {checkpoint.parent} has no {INTERRUPTED}; start without --resume")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        stored, state = content[REQUEST], content["state_dict"]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise ModelError(f"{checkpoint} is damaged ({error}): start without --resume") from error
    for differs, difference in (
        (stored["train"] != request["train"], "used other training images"),
        (stored["options"] != request["options"], "had other options of the detector"),
        (not _same_preprocessing(model, state), "had another region of interest or brightness"),
    ):
        if differs:
            raise UsageError(
                f"the interrupted fit in {checkpoint.parent} {difference}:"
                " request the same folder, seed, part groups and options, or start without --resume"
            )


def _same_preprocessing(model: Trainable, state: dict[str, torch.Tensor]) -> bool:
    """Whether a state has this model's region of interest and brightness."""
    own = model.preprocess.state_dict(prefix="preprocess.")
    pairs = [(value.float(), state.get(key, value).float()) for key, value in own.items()]
    return all(one.shape == other.shape and torch.allclose(one, other, rtol=1e-4) for one, other in pairs)


def has_fast_bf16() -> bool:
    """Return whether this machine multiplies bfloat16 in hardware."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.12
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class _Checkpoints(Callback):
    """Reports progress, and writes a checkpoint regularly and at an interruption."""

    def __init__(self, report: Report, checkpoint: Path, request: dict[str, Any], loaders: GoodData) -> None:
        self._report = report
        self._loaders = loaders
        self._checkpoint = checkpoint
        self._request = request
        self._written_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        num = int(trainer.num_training_batches)
        self._report(trainer.current_epoch * num + batch_idx + 1, num * (trainer.max_epochs or 1))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if time.monotonic() - self._written_at >= CHECKPOINT_SECONDS:
            self._write(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[REQUEST] = self._request

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loop = checkpoint["loops"]["fit_loop"]
        epochs = loop["epoch_progress"]["current"]
        if epochs["processed"] < epochs["ready"]:  # within an epoch: the trainer runs its remaining batches
            num_done = loop["epoch_loop.batch_progress"]["current"]["completed"]
            self._loaders.skip_batches(num_done, epoch=checkpoint["epoch"])

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, (KeyboardInterrupt, TrainingError)):
            self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        with atomic_write(self._checkpoint) as partial:
            trainer.save_checkpoint(partial)
        self._written_at = time.monotonic()
