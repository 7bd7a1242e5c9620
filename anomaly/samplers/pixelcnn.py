"""Gated PixelCNN: the exact probability of an image as a product over its values.

A. van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", 2016, arXiv 1606.05328 (eq. 1: product of the
conditionals in raster order, R, G, B within a pixel; section 2.3: softmax over discrete values).

Notation: x -> image in [0, 1], quantised to `levels` levels of equal width; l -> number of a level; t -> position of x on
the scale of l, x · levels - 1/2.
What differs, and why:
* Training replaces some of the seen values at random. Without this, one improbable value disturbs the rest of the image; with
  it, a defect raises -log p at its own pixels only.
* The condition is the position, see `GatedMaskedNetwork`. A class is not used, because images of one part have no classes.
* The detector's map interpolates -log p at t between the two nearest levels, and the network sees x itself. Both equal the
  exact -log p on quantised images. Elsewhere a rounding of 1e-7 in the resized image cannot flip a level or a verdict.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional

from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.map_scaling import smoothed
from anomaly.nn.masked_convolution import GatedMaskedNetwork
from anomaly.nn.optim import cosine_adam
from anomaly.nn.preprocess import Resize
from anomaly.samplers.base import Sampler, Score

_NO_LATENT = "a PixelCNN draws the image value by value and has no latent"


class PixelCnn(Sampler):
    """Gated PixelCNN.

    `log_prob` is the log of the probability mass of x quantised to `levels` levels, in nats; `-log_prob / (3 · h · w · ln 2)`
    are its bits per dimension. `bits_per_dim` adds the bits of the 256 grey levels within a level, taken as equally probable.
    The score `mean` with `smooth` 1 and without `standardise` is the likelihood per pixel.

    Args:
        size: side of the network's square input in pixels.
        resize: resizing rule, `stretch` or `letterbox`.
        levels: number of quantisation levels of a colour, 2 to 256.
        width: channels of both convolution stacks, a multiple of 3.
        num_layers: number of layers of both convolution stacks.
        kernel: side of the convolution kernels, odd.
        place: channels of the learned map of positions.
        noise: largest share of randomly replaced input values in training, in [0, 1].
        score: score of the detector form: `mean` or `peak` of the anomaly map, or `top`, the mean of its largest cells.
        smooth: side of the averaging window over the anomaly map in pixels, odd; 1 for no smoothing.
        standardise: scaling of each pixel of the anomaly map by its mean and deviation over the training images.
        learning_rate: initial learning rate of Adam, which follows a cosine to zero.
        epochs: passes over the training images.
        batch_size: images per optimisation step.
        seed: seed of the noise.
        cache_gib: memory for preprocessed images between epochs in GiB.
    """

    max_gradient_norm = 1.0
    density = "exact"
    loop = "autoregressive"
    unsupported = {  # noqa: RUF012 - a class constant, declared by the base
        "encode": _NO_LATENT,
        "decode": _NO_LATENT,
        "reconstruct": f"{_NO_LATENT}; inpaint the doubtful pixels instead",
        "interpolate": _NO_LATENT,
        "attribute": _NO_LATENT,
    }

    def __init__(
        self,
        *,
        size: int = 32,
        resize: Resize = "stretch",
        levels: int = 32,
        width: int = 48,
        num_layers: int = 5,
        kernel: int = 5,
        place: int = 16,
        noise: float = 0.1,
        score: Score = "peak",
        smooth: int = 3,
        standardise: bool = True,
        learning_rate: float = 2e-3,
        epochs: int = 40,
        batch_size: int = 8,
        seed: int = 0,
        cache_gib: float = 2.0,
    ) -> None:
        if size < 2:
            raise UsageError(f"size {size}: give 2 or more, e.g. 32")
        if not 2 <= levels <= 256:
            raise UsageError(f"levels {levels}: give 2 to 256, e.g. 32")
        if width < 3 or width % 3:
            raise UsageError(
                f"width {width}: three colours share the channels; give a multiple of 3, e.g. {max(3, width // 3 * 3)}"
            )
        if kernel < 3 or kernel % 2 == 0:
            raise UsageError(f"kernel {kernel}: give an odd side of 3 or more, e.g. 5")
        super().__init__(
            size=size,
            resize=resize,
            score=score,
            smooth=smooth,
            standardise=standardise,
            epochs=epochs,
            batch_size=batch_size,
        )
        self.save_hyperparameters()
        self.network = GatedMaskedNetwork(
            (size, size),
            num_groups=3,
            inputs=1,
            num_classes=levels,
            width=width,
            num_layers=num_layers,
            kernel=kernel,
            place=place,
        )
        self.levels, self.noise, self.learning_rate = levels, noise, learning_rate
        self.level_bits = 8 - math.log2(levels)  # grey levels within a level are equally probable
        self._random = torch.Generator().manual_seed(seed)
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    # exported functions

    def logits(self, x: Tensor) -> Tensor:
        """Compute logits (N, 3, levels, h, w) of each value's levels, given the values before it in images (N, 3, h, w)."""
        return self.network(_centred(x)).float()  # type: ignore[no-any-return]

    def links(self, rows: Tensor, first: Tensor) -> Tensor:
        """Compute the context from the rows above: rows (N, 3, R, w) that begin at row number `first` (N,)."""
        return self.network.from_above(_centred(rows), first)

    def logits_row(self, row: Tensor, links: Tensor) -> Tensor:
        """Compute logits (N, 3, levels, 1, C) of columns of one row (N, 3, 1, C), with the links at the same positions."""
        return self.network.along_row(_centred(row), links)

    def functions(self) -> dict[str, tuple[Tensor, ...]]:
        """Name `logits` of whole images, and `links` and `logits_row`, which draw a value at the cost of one row."""
        height, width = self.preprocess.size
        num_rows, num_columns = (min(self.network.reach + 1, side) for side in (height, width))
        rows, first = torch.zeros(2, 3, num_rows, width), torch.tensor([0, height - num_rows])
        with torch.no_grad():
            num_links = self.links(rows.to(self.device), first.to(self.device)).shape[1]
        row = torch.zeros(2, 3, 1, num_columns), torch.zeros(2, num_links, 1, num_columns)
        return {"logits": (torch.zeros(2, 3, height, width),), "links": (rows, first), "logits_row": row}

    def loop_settings(self) -> dict[str, Any]:
        """Return levels, reach of the network, and the region of interest as rows of 0 and 1."""
        region = ["".join("1" if inside else "0" for inside in row) for row in self.preprocess.roi.tolist()]
        return {"levels": self.levels, "reach": self.network.reach, "region": region}

    # likelihood

    def quantised(self, x: Tensor) -> Tensor:
        """Quantise images in [0, 1] to the centres of their levels."""
        return (self._level(x) + 0.5) / self.levels

    def _level(self, x: Tensor) -> Tensor:
        return torch.floor(x * self.levels).clamp(0, self.levels - 1)

    def _nats(self, x: Tensor) -> Tensor:
        """Compute -log p of each pixel (N, h, w), interpolated between the two nearest levels."""
        log_p = torch.log_softmax(self.logits(x), dim=2)
        t = (x * self.levels - 0.5).clamp(0, self.levels - 1)
        number = torch.arange(self.levels, device=x.device, dtype=x.dtype).view(-1, 1, 1)
        share = functional.relu(1 - (t[:, :, None] - number).abs())  # of each level, with sum 1
        nats = -(share * log_p).sum(dim=2).sum(dim=1)
        return nats * self.preprocess.roi if self.preprocess.has_roi else nats

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Compute -log p of each pixel of the quantised image, summed over its colours, in nats (N, h, w)."""
        return self._nats(self.quantised(x))

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log-probability of the quantised image inside the region of interest in nats, (N,)."""
        return -self.anomaly_map(x).sum(dim=2).sum(dim=1)

    def smoothed_map(self, x: Tensor) -> Tensor:
        """Compute the interpolated -log p averaged over the window, before standardisation, (N, h, w)."""
        return smoothed(self._nats(x), window=self.smooth)

    # training

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Mean -log p of a value, in nats."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        x = x.contiguous()  # cached or not, one memory layout and so one rounding
        logits = self.logits(self._disturbed(self.quantised(x)))
        with torch.autocast(self.device.type, enabled=False):
            nats = functional.cross_entropy(logits.transpose(1, 2), self._level(x).long(), reduction="none")
        loss = nats[:, :, self.preprocess.roi].mean()
        self.log("nats", loss, prog_bar=True)
        self.log("bits_per_dimension", loss / math.log(2))
        return loss

    def _disturbed(self, x: Tensor) -> Tensor:
        """Replace some values by random levels; their share in each image is random between 0 and `noise`."""
        share = self.noise * torch.rand((len(x), 1, 1, 1), generator=self._random)
        chosen = (torch.rand(x.shape, generator=self._random) < share).to(x.device)
        level = torch.randint(self.levels, x.shape, generator=self._random).to(x.device)
        return torch.where(chosen & self.preprocess.roi, (level + 0.5) / self.levels, x)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with one cosine to zero over the whole training."""
        num_steps = self.trainer.estimated_stepping_batches
        return cosine_adam(self.network.parameters(), num_steps=num_steps, learning_rate=self.learning_rate)


def _centred(x: Tensor) -> Tensor:
    """Map images from [0, 1] to [-1, 1]."""
    return 2 * x - 1
