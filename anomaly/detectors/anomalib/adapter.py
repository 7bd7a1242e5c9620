"""Any anomalib model as a detector: anomalib's network and training with this project's preprocessing and calibration.

S. Akcay et al., "Anomalib: A Deep Learning Library for Anomaly Detection", 2022, arXiv 2202.08341.

anomalib's own preprocessing, thresholds, normalisation, metrics and visualisation are not used. One pass collects the
preprocessed good images. Then a `lightning` trainer trains anomalib's class on them, without validation and in single
precision. anomalib is imported when a model is built.

What differs, and why:
* The whole image is scored, without Dinomaly's central crop.
* EfficientAd takes the quantiles that weigh its two maps from the training images; anomalib uses a validation set.
* Some models have a new inference (see `inference`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

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
from anomaly.detectors.anomalib.inference import INFERENCE, NOT_EXPORTED, WITHOUT_MAP, own_forward
from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import WindowsOnly
from anomaly.errors import TrainingError, UsageError, WeightsError
from anomaly.nn.batch import Batch
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.score_pooling import Pooling, ScorePooling

FOLDERS = {
    "Draem": ("dtd_dir", "textures, e.g. the Describable Textures Dataset"),
    "EfficientAd": ("imagenet_dir", "everyday images in a folder per class, e.g. Imagenette"),
    "Glass": ("anomaly_source_path", "textures, e.g. the Describable Textures Dataset"),
}
"""Model -> its option for a folder of additional training images, and the description of these images"""
CELL = 4
"""Side in pixels of a cell of pooling `top`"""


class _Inner(NamedTuple):
    """anomalib's module before its training, its trainable parameters, and its parts in training mode."""

    module: Any
    trainable: list[nn.Parameter]
    in_training_mode: list[nn.Module]


class AnomalibModel(Detector):
    """Model of anomalib.

    Args:
        model: class name in `anomalib.models`, e.g. `Patchcore`.
        options: constructor arguments of the model, without processors, evaluator, visualizer and `pre_trained`.
        size: height and width of the network's input in pixels.
        resize: resizing rule, `stretch` or `letterbox`.
        weights: weights of the backbones: `pretrained`, `none` (random), or the path of a `.safetensors` file or its folder.
        score: image score: `own`, the model's own score, or `map`, pooled from the map; some models have no map.
        pooling: pooling of the map to the score: `maximum`, or `top`, the mean of its largest cells.
        top: share of the cells that pooling `top` averages, in (0, 1].
        inner_epochs: passes over the training images; models with a memory bank choose their own number.
        batch_size: images per optimisation step.

    Raises:
        UsageError: anomalib is not installed, or model, option or size is invalid.
        WeightsError: weights not found, or not matching the network.
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
        score: Literal["own", "map"] = "own",
        pooling: Pooling = "maximum",
        top: float = 0.02,
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
        if score == "map" and model in WITHOUT_MAP:
            raise _without_map(model)
        self.score, self.pooling = score, ScorePooling(pooling, top=top, cell=CELL)
        self.export_reason = NOT_EXPORTED.get(model)
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        self._inner: tuple[_Inner, ...] = (
            _Inner(module, trainable, [part for part in self.network.modules() if part.training]),
        )
        self._collected: list[Tensor] = []
        self.register_buffer("is_fitted", torch.tensor(False))
        self.register_state_dict_post_hook(_copy_shared_tensors)  # type: ignore[no-untyped-call]
        _freeze(self.network)

    @classmethod
    def adapt(cls, module: Any, *, resize: Resize = "stretch") -> AnomalibModel:
        """Convert a fitted module of anomalib into a detector without calibration.

        Args:
            module: instance of a class of `anomalib.models`, with its own pre-processor.
            resize: resizing rule; anomalib uses `stretch`.

        Raises:
            UsageError: preprocessing other than a resize to a square and the default normalisation of the class.
        """
        name, size = type(module).__name__, module.input_size
        if size is None or size[0] != size[1] or not is_plain(module):
            raise UsageError(
                f"the preprocessing of this {name} is {getattr(module.pre_processor, 'transform', None)}:"
                " only a resize to a square and the default normalisation of its class are supported"
            )
        options = {key: _plain(value) for key, value in module.hparams.items() if key not in NOT_OPTIONS}
        detector = cls(model=name, options=options, size=size[0], resize=resize, weights="none")
        state = module.model.state_dict()
        _resize_buffers(detector.network, state)
        detector.network.load_state_dict(state)
        detector._mark_fitted()
        detector.provenance = {"weights": f"fitted by anomalib's {name}"}
        return detector.eval()

    def train(self, mode: bool = True) -> AnomalibModel:
        """Keep the network in eval mode; anomalib's trainer changes the mode itself."""
        super().train(mode)
        self.network.eval()
        return self

    def configure_optimizers(self) -> None:
        """No optimiser: anomalib's module has its own."""

    def on_fit_start(self) -> None:
        """Check the folder of additional training images.

        Raises:
            UsageError: the folder is missing or empty, or the model is already trained.
        """
        if not self._inner:
            raise UsageError(f"this {self.model} is already trained: build a new one")
        option, description = FOLDERS.get(self.model, ("", ""))
        place = self.hparams["options"].get(option, "")
        if option and not (place and any(Path(place).rglob("*.*"))):
            raise UsageError(f"anomalib's {self.model} trains with {description}: set options.{option} to their folder")

    def training_step(self, batch: Batch, index: int) -> None:
        """Collect the network's inputs (N, 3, size, size) float32, 0.75 MiB per image at size 256."""
        self._collected.append(self.preprocessed(batch).cpu().contiguous())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restart the training: a checkpoint contains neither the collected inputs nor anomalib's optimiser."""
        checkpoint["state_dict"] = self.state_dict()
        loop = checkpoint["loops"]["fit_loop"]
        for progress in (loop["epoch_progress"], loop["epoch_loop.batch_progress"]):
            progress["current"] = dict.fromkeys(progress["current"], 0)

    def on_fit_end(self) -> None:
        """Train anomalib's module on the collected inputs.

        Raises:
            UsageError: anomalib rejects size, batch size or options.
            WeightsError: a download of anomalib fails.
            TrainingError: a tensor is not finite after the training.
        """
        ((module, trainable, in_training_mode),) = self._inner
        x, self._collected = torch.cat(self._collected), []
        for parameter in trainable:
            parameter.requires_grad_(True)
        for part in in_training_mode:
            part.training = True
        if self.hparams["weights"] == "none" and self.model == "EfficientAd":
            module.prepare_pretrained_model = lambda: None  # keep the random teacher
        accelerator = "gpu" if self.device.type == "cuda" else "cpu"
        with quiet():
            try:
                _train(module, x, epochs=self.inner_epochs, batch_size=self.batch_size, accelerator=accelerator)
            except OSError as error:
                raise WeightsError(
                    f"anomalib's {self.model} cannot download its training data or weights ({error}):"
                    " try again with network access"
                ) from error
            except (ValueError, AssertionError, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                    raise
                raise UsageError(
                    f"anomalib's {self.model} cannot be trained with size {self.preprocess.size[0]}, batch_size"
                    f" {self.batch_size} and {self.hparams['options']}: change them ({error or type(error).__name__})"
                ) from error
        _freeze(self.network.to(self.device))
        for key, value in self.network.state_dict().items():
            if not torch.isfinite(value).all():
                raise TrainingError(
                    f"{key} of anomalib's {self.model} is not finite after training: lower its learning rate in options"
                )
        self._mark_fitted()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        _resize_buffers(
            self.network, {key.removeprefix(f"{prefix}network."): value for key, value in state_dict.items()}
        )
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if self.is_fitted:
            self._mark_fitted()

    def _mark_fitted(self) -> None:
        self.is_fitted.fill_(True)
        self._inner = ()

    def anomaly(self, x: Tensor) -> Anomaly:
        """Compute the model's score and map. A model without a map gets a constant map with the score's value.

        Raises:
            UsageError: the model is not trained, or has no map for score `map`.
        """
        if self._inner:
            raise UsageError(f"anomalib's {self.model} is not trained: fit it first")
        score, anomaly_map = INFERENCE.get(self.model, own_forward)(self.network, x.contiguous())
        score = score.flatten().float()
        if anomaly_map is None:
            if self.score == "map":
                raise _without_map(self.model)
            return Anomaly(score, score[:, None, None].repeat(1, *self.preprocess.size))
        anomaly_map = anomaly_map.float().reshape(-1, 1, *anomaly_map.shape[-2:])
        if anomaly_map.shape[2:] != x.shape[2:]:
            anomaly_map = functional.interpolate(anomaly_map, x.shape[2:], mode="bilinear", align_corners=False)
        inside = self.inside_roi(anomaly_map[:, 0])
        return Anomaly(score if self.score == "own" else self.pooled_score(inside), inside)


def _without_map(model: str) -> UsageError:
    return UsageError(f"anomalib's {model} has no map: use score own")


def _train(module: Any, x: Tensor, *, epochs: int, batch_size: int, accelerator: str) -> None:
    """Train a module of anomalib on x (N, 3, h, w) with its own trainer and without validation."""
    import lightning.pytorch
    from anomalib.data import ImageBatch

    def as_batch(items: list[tuple[Tensor]]) -> Any:
        image = torch.stack([item for (item,) in items])
        good = torch.zeros(len(image), dtype=torch.bool)
        return ImageBatch(image=image, gt_label=good, gt_mask=good[:, None, None].expand(-1, *image.shape[2:]))

    class Images(lightning.pytorch.LightningDataModule):  # type: ignore[misc]
        """Collected inputs; some models read them from their trainer's datamodule."""

        train_batch_size = batch_size

        def train_dataloader(self) -> Any:
            """Shuffled batches; a last batch of one image, which batch norm rejects, is dropped where possible."""
            single = len(x) % batch_size == 1 and len(x) > 1 < batch_size and not hasattr(module, "_is_fitted")
            return DataLoader(TensorDataset(x), batch_size, shuffle=True, collate_fn=as_batch, drop_last=single)

    images = Images()
    options: dict[str, Any] = {"max_epochs": epochs, "devices": 1, "num_sanity_val_steps": 0} | module.trainer_arguments
    trainer = lightning.pytorch.Trainer(
        **options, accelerator=accelerator, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    try:
        trainer.fit(module, datamodule=images)
    except SystemExit as error:  # the trainer's signal of an interrupted fit
        raise KeyboardInterrupt from error
    if hasattr(module, "map_norm_quantiles"):
        module.model.eval()
        module.model.quantiles.update(module.map_norm_quantiles(images.train_dataloader()))
    module.trainer = None


def _freeze(network: nn.Module) -> None:
    """Freeze a network in eval mode, plain tensor attributes included, with contiguous tensors as in a file."""
    for part in network.requires_grad_(False).eval().modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.requires_grad:
                setattr(part, name, value.detach())
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.contiguous()


def _copy_shared_tensors(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Copy tensors that share memory, as a safetensors file requires."""
    seen: set[int] = set()
    for key, value in state.items():
        if value.data_ptr() in seen:
            state[key] = value.clone()
        seen.add(value.data_ptr())


def _resize_buffers(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Resize buffers with data-dependent sizes to the sizes of a fitted state."""
    for key, buffer in list(network.named_buffers()):
        if key in state and state[key].shape != buffer.shape:
            owner, _, name = key.rpartition(".")
            setattr(network.get_submodule(owner), name, torch.zeros_like(state[key], device=buffer.device))


def _plain(value: Any) -> Any:
    """Convert an argument of anomalib to a JSON value."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
