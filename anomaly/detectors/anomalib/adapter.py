"""Any anomalib model as a detector: its network and its training, with our preprocessing, calibration and export.

S. Akcay et al., "Anomalib: A Deep Learning Library for Anomaly Detection", 2022, arXiv 2202.08341.

anomalib's own preprocessing, thresholds, normalisation, metrics and pictures take no part. One pass gathers the good images
as `Preprocess` gives them; then anomalib's class trains on them by a `lightning` trainer, without validation and in single
precision. Nothing imports anomalib before a model is built.

What differs from anomalib: a crop of the middle (Dinomaly) is not taken, the whole image is scored; EfficientAd takes
the quantiles that weigh its two maps from the training images, anomalib from a validation set; see `anomalib_inference`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from anomaly.detectors.anomalib.build import (
    NOT_OPTIONS,
    build_module,
    default_normalisation,
    is_plain,
    model_class,
    quiet,
)
from anomaly.detectors.anomalib.inference import INFERENCE, NOT_EXPORTED, own_forward
from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import WindowsOnly
from anomaly.errors import TrainingError, UsageError, WeightsError
from anomaly.nn.batch import Batch
from anomaly.nn.preprocess import Preprocess, Resize

FOLDERS = {
    "Draem": ("dtd_dir", "textures, e.g. the Describable Textures Dataset"),
    "EfficientAd": ("imagenet_dir", "everyday images in a folder per class, e.g. Imagenette"),
    "Glass": ("anomaly_source_path", "textures, e.g. the Describable Textures Dataset"),
}
"""Model -> the option that names a folder of images which its training mixes in, and what lies there"""


class _Inner(NamedTuple):
    """anomalib's module until it is trained, and which parts of it training sets in motion: at rest all is frozen."""

    module: Any
    trainable: list[nn.Parameter]
    in_training_mode: list[nn.Module]


class AnomalibModel(Detector):
    """A model of anomalib.

    Args:
        model: name of its class in `anomalib.models`, e.g. `Patchcore`.
        options: its constructor's arguments but for the processors, evaluator, visualizer and `pre_trained`.
        size: height and width of the network's input in pixels.
        resize: `stretch` or `letterbox`.
        weights: of its backbones: `pretrained`, `none`, or a path (see `Backbone`).
        inner_epochs: passes of its training; models of a memory bank take as many as they want.
        batch_size: images per step of its training.

    Raises:
        UsageError: anomalib is not installed, or has no such model, option or size.
        WeightsError: weights that are nowhere to be had or do not fit.
    """

    tiling = WindowsOnly("the equivariance of anomalib's networks is not known")
    is_fitted: Tensor

    def __init__(
        self,
        *,
        model: str,
        options: Mapping[str, Any] = {},
        size: int = 256,
        resize: Resize = "stretch",
        weights: str = "pretrained",
        inner_epochs: int = 10,
        batch_size: int = 8,
    ) -> None:
        found = model_class(model)
        mean, std = default_normalisation(found)
        super().__init__(
            preprocess=Preprocess(size=(size, size), resize=resize, mean=mean, std=std), epochs=1, batch_size=batch_size
        )
        self.save_hyperparameters()
        self.automatic_optimization = False
        module, self.provenance = build_module(found, options, size=size, weights=weights)
        self.network: nn.Module = module.model
        self.model, self.inner_epochs = model, inner_epochs
        self.export_reason = NOT_EXPORTED.get(model)
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        self._inner: tuple[_Inner, ...] = (
            _Inner(module, trainable, [part for part in self.network.modules() if part.training]),
        )
        self._gathered: list[Tensor] = []
        self.register_buffer("is_fitted", torch.tensor(False))
        self.register_state_dict_post_hook(_own_memory)  # type: ignore[no-untyped-call]
        _come_to_rest(self.network)

    @classmethod
    def adapt(cls, module: Any, *, resize: Resize = "stretch") -> AnomalibModel:
        """Take over a module of anomalib that was fitted elsewhere; it is still to be calibrated.

        Args:
            module: an instance of one of `anomalib.models`, with its own pre-processor.
            resize: `stretch` or `letterbox`; anomalib itself squashes.

        Raises:
            UsageError: a module whose preprocessing is more than a resize to a square and its class's own normalisation.
        """
        name, size = type(module).__name__, module.input_size
        if size is None or size[0] != size[1] or not is_plain(module):
            raise UsageError(
                f"this {name} preprocesses by {getattr(module.pre_processor, 'transform', None)}: only a resize to a square"
                " and the default normalisation of its class can be adapted"
            )
        options = {key: _plain(value) for key, value in module.hparams.items() if key not in NOT_OPTIONS}
        detector = cls(model=name, options=options, size=size[0], resize=resize, weights="none")
        learned = module.model.state_dict()
        _make_room(detector.network, learned)
        detector.network.load_state_dict(learned)
        detector._note_fitted()
        detector.provenance = {"weights": f"as fitted by anomalib's {name}"}
        return detector.eval()

    def train(self, mode: bool = True) -> AnomalibModel:
        """Leave the network in eval mode: only its own trainer sets it in motion."""
        super().train(mode)
        self.network.eval()
        return self

    def configure_optimizers(self) -> None:
        """None: the inner trainer has its own."""

    def on_fit_start(self) -> None:
        """Refuse a training that lacks what it mixes in.

        Raises:
            UsageError: an option of the model that names no folder with files; a model that was trained already.
        """
        if not self._inner:
            raise UsageError(f"this {self.model} was trained already: build a new one")
        option, what = FOLDERS.get(self.model, ("", ""))
        place = self.hparams["options"].get(option, "")
        if option and not (place and any(Path(place).rglob("*.*"))):
            raise UsageError(f"anomalib's {self.model} learns with {what}: name a folder of them as options.{option}")

    def training_step(self, batch: Batch, index: int) -> None:
        """Gather the network's input, (N, 3, size, size) float32: 0.75 MiB an image at size 256."""
        self._gathered.append(self.preprocessed(batch).cpu().contiguous())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Begin anew, with the weights built just now: a checkpoint lacks what was gathered and the inner optimiser."""
        checkpoint["state_dict"] = self.state_dict()
        loop = checkpoint["loops"]["fit_loop"]
        for progress in (loop["epoch_progress"], loop["epoch_loop.batch_progress"]):
            progress["current"] = dict.fromkeys(progress["current"], 0)

    def on_fit_end(self) -> None:
        """Train anomalib's module on the gathered images.

        Raises:
            UsageError: what anomalib refuses.
            WeightsError: a download of anomalib's that fails.
            TrainingError: something learned that is no finite number.
        """
        ((module, trainable, in_training_mode),) = self._inner
        x, self._gathered = torch.cat(self._gathered), []
        for parameter in trainable:
            parameter.requires_grad_(True)
        for part in in_training_mode:
            part.training = True
        if self.hparams["weights"] == "none" and self.model == "EfficientAd":
            module.prepare_pretrained_model = lambda: None  # the teacher stays random
        accelerator = "gpu" if self.device.type == "cuda" else "cpu"
        with quiet():
            try:
                _train(module, x, epochs=self.inner_epochs, batch_size=self.batch_size, accelerator=accelerator)
            except OSError as error:
                raise WeightsError(f"anomalib's {self.model} cannot fetch what it learns with: {error}") from error
            except (ValueError, AssertionError, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                    raise
                raise UsageError(
                    f"anomalib's {self.model} cannot be trained with size {self.preprocess.size[0]}, batch_size"
                    f" {self.batch_size} and {self.hparams['options']}: {error or type(error).__name__}"
                ) from error
        _come_to_rest(self.network.to(self.device))
        for key, value in self.network.state_dict().items():
            if not torch.isfinite(value).all():
                raise TrainingError(f"{key} of anomalib's {self.model} became no finite number in training")
        self._note_fitted()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        _make_room(self.network, {key.removeprefix(f"{prefix}network."): value for key, value in state_dict.items()})
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if self.is_fitted:
            self._note_fitted()

    def _note_fitted(self) -> None:
        self.is_fitted.fill_(True)
        self._inner = ()

    def anomaly(self, x: Tensor) -> Anomaly:
        """Score as the model does; one that gives no map gets a flat one, its score everywhere.

        Raises:
            UsageError: it has learned nothing yet.
        """
        if self._inner:
            raise UsageError(f"anomalib's {self.model} has learned from no image yet: fit it first")
        score, anomaly_map = INFERENCE.get(self.model, own_forward)(self.network, x.contiguous())
        score = score.flatten().float()
        if anomaly_map is None:
            return Anomaly(score, score[:, None, None].repeat(1, *self.preprocess.size))
        anomaly_map = anomaly_map.float().reshape(-1, 1, *anomaly_map.shape[-2:])
        if anomaly_map.shape[2:] != x.shape[2:]:
            anomaly_map = functional.interpolate(anomaly_map, x.shape[2:], mode="bilinear", align_corners=False)
        return Anomaly(score, self.inside_roi(anomaly_map[:, 0]))


def _train(module: Any, x: Tensor, *, epochs: int, batch_size: int, accelerator: str) -> None:
    """Train a module of anomalib on x (N, 3, h, w) by a trainer of its own, without validation."""
    import lightning.pytorch
    from anomalib.data import ImageBatch

    def as_batch(items: list[tuple[Tensor]]) -> Any:
        image = torch.stack([item for (item,) in items])
        good = torch.zeros(len(image), dtype=torch.bool)
        return ImageBatch(image=image, gt_label=good, gt_mask=good[:, None, None].expand(-1, *image.shape[2:]))

    class Images(lightning.pytorch.LightningDataModule):  # type: ignore[misc]
        """What was gathered; some models ask their trainer's datamodule for it."""

        train_batch_size = batch_size

        def train_dataloader(self) -> Any:
            """Shuffled; a last batch of one image, which no batch norm takes, is left out where nothing counts on it."""
            alone = len(x) % batch_size == 1 and len(x) > 1 < batch_size and not hasattr(module, "_is_fitted")
            return DataLoader(TensorDataset(x), batch_size, shuffle=True, collate_fn=as_batch, drop_last=alone)

    images = Images()
    wanted: dict[str, Any] = {"max_epochs": epochs, "devices": 1, "num_sanity_val_steps": 0} | module.trainer_arguments
    trainer = lightning.pytorch.Trainer(
        **wanted, accelerator=accelerator, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    try:
        trainer.fit(module, datamodule=images)
    except SystemExit as error:  # how the trainer ends an interrupted fit
        raise KeyboardInterrupt from error
    if hasattr(module, "map_norm_quantiles"):
        module.model.eval()
        module.model.quantiles.update(module.map_norm_quantiles(images.train_dataloader()))
    module.trainer = None


def _come_to_rest(network: nn.Module) -> None:
    """Freeze a network in eval mode, tensors that are plain attributes of its parts too, laid out as a file will hold them."""
    for part in network.requires_grad_(False).eval().modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.requires_grad:
                setattr(part, name, value.detach())
    for held in (*network.parameters(), *network.buffers()):
        held.data = held.data.contiguous()


def _own_memory(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Give each tensor of a state its own memory, which a safetensors file asks for."""
    seen: set[int] = set()
    for key, value in state.items():
        if value.data_ptr() in seen:
            state[key] = value.clone()
        seen.add(value.data_ptr())


def _make_room(network: nn.Module, learned: Mapping[str, Tensor]) -> None:
    """Give buffers whose sizes the data decided the sizes that were learned."""
    for key, held in list(network.named_buffers()):
        if key in learned and learned[key].shape != held.shape:
            owner, _, name = key.rpartition(".")
            setattr(network.get_submodule(owner), name, torch.zeros_like(learned[key], device=held.device))


def _plain(value: Any) -> Any:
    """Write an argument of anomalib's as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
