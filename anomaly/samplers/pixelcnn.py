"""Gated PixelCNN: the exact probability of an image, one value after the other.

A. van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", 2016, arXiv 1606.05328 (eq. 1: the product of
the conditionals in raster order, R, G, B within a pixel; section 2.3: the softmax over discrete values).

Notation: x -> image in [0, 1], cut into `levels` steps of equal width; l -> number of a step; t -> place of x on the scale
of l, x · levels - 1/2.
What differs, and why: in training some of the values that a conditional sees are replaced at random. One that has only
ever seen images carries a single improbable draw on through the image; this one has learned to return, and a defect
surprises where it is, not in all that follows. A class of the image is not a condition, for images of one part have
none; its place is, see `GatedMaskedNetwork`. The map of the detector takes t as it is: -log p is interpolated between the
two nearest levels, and the network sees x itself. On images of whole levels that is the anomaly_map exactly; elsewhere a
rounding of the resized image by 1e-7 cannot move a value to another level, and a verdict with it.
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

_NO_LATENT = "a PixelCNN has no latent: it draws the image itself, value by value"


class PixelCnn(Sampler):
    """Gated PixelCNN.

    `log_prob` is the probability of a discrete image: the log of the probability mass of x cut into `levels` levels, in nats;
    `-log_prob / (3 · h · w · ln 2)` are its bits per dimension. `bits_per_dim` adds what tells the 256 grey levels within
    them apart, all alike. Score `mean` with `smooth` 1 and `standardise` off is that likelihood per pixel.

    Args:
        size: side of the network's square input in pixels.
        resize: `stretch` or `letterbox`.
        levels: values that a colour of a pixel can take; 256 are all.
        width: channels of both stacks, a multiple of 3.
        num_layers: of both stacks.
        kernel: side of the convolutions, odd.
        place: channels of the learned map of the place.
        noise: largest share of the values seen that are replaced at random in training, in [0, 1].
        score: `mean` of the map or its `peak`.
        smooth: side in pixels of the averaging window over the map, odd; 1 leaves it.
        standardise: whether each pixel of the map is measured by mean and deviation of the training images there.
        learning_rate: of Adam, at the start of the cosine.
        epochs: passes over the training images.
        batch_size: images per step.
        seed: of the noise.
        cache_gib: memory in GiB for preprocessed images kept between epochs.
    """

    max_gradient_norm = 1.0
    density = "exact"
    loop = "autoregressive"
    unsupported = {  # noqa: RUF012 - a constant of the class, as the base declares it
        "encode": _NO_LATENT,
        "decode": _NO_LATENT,
        "reconstruct": f"{_NO_LATENT}, so there is nothing to rebuild it from; inpaint what you doubt",
        "interpolate": f"{_NO_LATENT}, so there is no way between two images",
        "attribute": f"{_NO_LATENT}, so there is no direction to move along",
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
            raise UsageError(f"size {size}: one pixel has nothing before it; take 2 or more, e.g. 32")
        if not 2 <= levels <= 256:
            raise UsageError(f"levels {levels}: a colour has 2 to 256 of them, e.g. 32")
        if width < 3 or width % 3:
            raise UsageError(f"width {width}: three colours share the channels, e.g. {max(3, width // 3 * 3)}")
        if kernel < 3 or kernel % 2 == 0:
            raise UsageError(f"kernel {kernel}: a side is odd and 3 or more, e.g. 5")
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
        self.level_bits = 8 - math.log2(levels)  # the grey levels within a level are equally probable
        self._random = torch.Generator().manual_seed(seed)
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    # the exported functions

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N, 3, levels, h, w) of each level of each value, given those before it in images (N, 3, h, w)."""
        return self.network(_centred(x)).float()  # type: ignore[no-any-return]

    def links(self, rows: Tensor, first: Tensor) -> Tensor:
        """What the rows above tell: `GatedMaskedNetwork.from_above` of rows (N, 3, R, w) from number `first` (N,) on."""
        return self.network.from_above(_centred(rows), first)

    def logits_row(self, row: Tensor, links: Tensor) -> Tensor:
        """Logits (N, 3, levels, 1, C) of columns of one row (N, 3, 1, C), with the links at the same places."""
        return self.network.along_row(_centred(row), links)

    def functions(self) -> dict[str, tuple[Tensor, ...]]:
        """`logits` of whole images, and `links` and `logits_row`, by which a value is drawn at the price of one row."""
        height, width = self.preprocess.size
        num_rows, num_columns = (min(self.network.reach + 1, side) for side in (height, width))
        rows, first = torch.zeros(2, 3, num_rows, width), torch.tensor([0, height - num_rows])
        with torch.no_grad():
            num_links = self.links(rows.to(self.device), first.to(self.device)).shape[1]
        row = torch.zeros(2, 3, 1, num_columns), torch.zeros(2, num_links, 1, num_columns)
        return {"logits": (torch.zeros(2, 3, height, width),), "links": (rows, first), "logits_row": row}

    def loop_settings(self) -> dict[str, Any]:
        """Levels, reach of the network, and the region of interest as rows of 0 and 1."""
        region = ["".join("1" if inside else "0" for inside in row) for row in self.preprocess.roi.tolist()]
        return {"levels": self.levels, "reach": self.network.reach, "region": region}

    # likelihood

    def quantised(self, x: Tensor) -> Tensor:
        """Bring images in [0, 1] to the middles of their levels."""
        return (self._level(x) + 0.5) / self.levels

    def _level(self, x: Tensor) -> Tensor:
        return torch.floor(x * self.levels).clamp(0, self.levels - 1)

    def _nats(self, x: Tensor) -> Tensor:
        """-log p of each pixel (N, h, w), between the two nearest levels where x is on neither."""
        log_p = torch.log_softmax(self.logits(x), dim=2)
        t = (x * self.levels - 0.5).clamp(0, self.levels - 1)
        number = torch.arange(self.levels, device=x.device, dtype=x.dtype).view(-1, 1, 1)
        share = functional.relu(1 - (t[:, :, None] - number).abs())  # of each level, 1 in all
        nats = -(share * log_p).sum(dim=2).sum(dim=1)
        return nats * self.preprocess.roi if self.preprocess.has_roi else nats

    def anomaly_map(self, x: Tensor) -> Tensor:
        """-log p of each pixel of the quantised image, its three colours together, in nats (N, h, w)."""
        return self._nats(self.quantised(x))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log of the probability mass of the quantised image in nats, (N,); of the pixels in the region of interest."""
        return -self.anomaly_map(x).sum(dim=2).sum(dim=1)

    def smoothed_map(self, x: Tensor) -> Tensor:
        return smoothed(self._nats(x), window=self.smooth)

    # training

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Mean -log p of a value, in nats."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        x = x.contiguous()  # one memory layout, cached or not: the kernel that it chooses rounds its own way
        logits = self.logits(self._disturbed(self.quantised(x)))
        with torch.autocast(self.device.type, enabled=False):
            nats = functional.cross_entropy(logits.transpose(1, 2), self._level(x).long(), reduction="none")
        loss = nats[:, :, self.preprocess.roi].mean()
        self.log("nats", loss, prog_bar=True)
        self.log("bits_per_dimension", loss / math.log(2))
        return loss

    def _disturbed(self, x: Tensor) -> Tensor:
        """Put a level drawn at random in place of some values, whose share in each image is drawn from 0 to `noise`."""
        share = self.noise * torch.rand((len(x), 1, 1, 1), generator=self._random)
        chosen = (torch.rand(x.shape, generator=self._random) < share).to(x.device)
        level = torch.randint(self.levels, x.shape, generator=self._random).to(x.device)
        return torch.where(chosen & self.preprocess.roi, (level + 0.5) / self.levels, x)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with one cosine to zero over the whole training."""
        num_steps = self.trainer.estimated_stepping_batches
        return cosine_adam(self.network.parameters(), num_steps=num_steps, learning_rate=self.learning_rate)


def _centred(x: Tensor) -> Tensor:
    """Images of [0, 1] in [-1, 1]."""
    return 2 * x - 1
