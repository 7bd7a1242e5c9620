"""RIAD: the residual of inpainting from the surroundings is the anomaly map.

V. Zavrtanik et al., "Reconstruction by inpainting for visual anomaly detection", Pattern Recognition 112, 2021.

Notation: x -> image in [-1, 1], (N, 3, h, w); k -> side of a region in pixels; S_i -> the i-th of n disjoint sets of regions
(cells of the k×k grid) that together cover the image; M_i -> 0 on S_i, 1 elsewhere;
x_hat = sum_i net(x · M_i) · (1 - M_i), so that no pixel of x_hat depends on its own region.

As in the paper: the U-Net with concatenated skips, the loss (§3.2: gradient similarity at four scales, SSIM and squared error
with equal weights), one random region size per step, and the map: 1 - MSGMS of x and x_hat, averaged over the region sizes,
then over a window. The score is the map's maximum.
Option: `score: standardised` measures each pixel in units of its spread over the training images. Some details of a good part,
such as print, are never inpainted well. The map stays unchanged.
What differs, and why:
* The sets of regions for scoring are drawn once and are part of the state, so that scores are deterministic.
* Each region size has the same weight in the map; a public implementation weighs the largest 64 times the smallest.
* The n passes of a step share one batch-norm statistic.
* Convolutions before a batch norm have no bias, because the norm removes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import Seamless, WindowsOnly, pooled_tiling
from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.map_scaling import PixelScale, check_window, smoothed
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.score_pooling import Pooling, ScorePooling
from anomaly.nn.similarity import GradientSimilarity, Ssim

_NUM_HALVINGS = 4
CELL = 4
"""Side in pixels of a cell of pooling `top`"""


class InpaintingUNet(nn.Module):
    """U-Net of the paper: four halvings, concatenated skips, tanh output.

    Args:
        width: channels at full resolution; the lower levels have 2, 4, 8 and 8 times as many. 64 in the paper.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8, 8)]
        pairs = list(itertools.pairwise(widths))
        self.stem = nn.Sequential(*_conv(3, width), *_conv(width, width))
        self.down = nn.ModuleList(
            nn.Sequential(*_conv(fine, coarse, kernel=4, stride=2), *_conv(coarse, coarse)) for fine, coarse in pairs
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 4, stride=2, padding=1) for fine, coarse in pairs)
        self.mix = nn.ModuleList(nn.Sequential(*_conv(2 * fine, fine), *_conv(fine, fine)) for fine, _ in pairs)
        self.head = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to images (N, 3, H, W) in [-1, 1]; H and W are multiples of 16."""
        x = self.stem(x)
        passed = []
        for down in self.down:
            passed.append(x)
            x = down(x)
        for level in reversed(range(len(self.up))):
            x = self.mix[level](torch.cat((self.up[level](x), passed[level]), dim=1))
        return torch.tanh(self.head(x))


def _conv(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def draw_sets(*, size: int, region: int, num_sets: int, generator: torch.Generator) -> Tensor:
    """Distribute the cells of a grid at random over disjoint sets of equal size.

    Args:
        size: side of the square image in pixels.
        region: side of a cell in pixels, a divisor of `size`.
        num_sets: number of sets, which together cover the image.
        generator: random generator of the permutation, on the CPU.

    Returns:
        (size, size) uint8, index of each pixel's set, 0 to num_sets - 1.
    """
    grid = size // region
    sets = (torch.randperm(grid * grid, generator=generator) % num_sets).to(torch.uint8).view(grid, grid)
    return sets.repeat_interleave(region, dim=0).repeat_interleave(region, dim=1)


class Riad(Detector):
    """Reconstruction by inpainting.

    Args:
        size: side of the network's square input in pixels, a multiple of 16 and of every region.
        resize: resizing rule, `stretch` or `letterbox`.
        width: channels of the U-Net at full resolution; 64 in the paper.
        regions: sides k in pixels of the inpainted regions; 2, 4, 8 and 16 at size 256 in the paper.
        num_sets: number n of sets of regions, inpainted one after the other.
        smooth: side in pixels of the averaging window over the anomaly map, odd; 1 for no averaging.
        score: pooled map: `map`, as in the paper, or `standardised`, the map after scaling each
            pixel by its mean and deviation over the training images.
        pooling: pooling of the map to the score: `maximum`, or `top`, the mean of its largest cells.
        top: share of the cells that pooling `top` averages, in (0, 1].
        learning_rate: learning rate of Adam; the last sixth of the training uses a tenth of it.
        weight_decay: L2 penalty of Adam.
        epochs: passes over the training images.
        batch_size: images per optimisation step.
        patience: number of epochs without a lower validation loss before training stops early; 0 trains all epochs.
        seed: random seed of the sets of regions, in training and for scoring.
        cache_gib: memory in GiB for preprocessed images that stay in memory between epochs; 0 for none.
    """

    sets: Tensor
    """(len(regions), size, size) uint8, index of each pixel's set for scoring"""

    def __init__(
        self,
        *,
        size: int = 256,
        resize: Resize = "stretch",
        width: int = 64,
        regions: Sequence[int] = (2, 4, 8, 16),
        num_sets: int = 3,
        smooth: int = 21,
        score: Literal["map", "standardised"] = "map",
        pooling: Pooling = "maximum",
        top: float = 0.02,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-5,
        epochs: int = 300,
        batch_size: int = 4,
        patience: int = 0,
        seed: int = 0,
        cache_gib: float = 2.0,
    ) -> None:
        step = 2**_NUM_HALVINGS
        if size % step or size < 2 * step:
            raise UsageError(
                f"size {size}: RIAD needs a multiple of {step} from {2 * step} up,"
                f" e.g. {max(2 * step, size // step * step)}"
            )
        check_window(smooth)
        if num_sets < 2:
            raise UsageError(f"num_sets {num_sets}: a single set would hide the whole image; use 2 or more, e.g. 3")
        if not regions:
            raise UsageError("regions (): at least one region is required; give sides in pixels, e.g. (2, 4, 8, 16)")
        for region in regions:
            if region < 1 or size % region or (size // region) ** 2 < num_sets:
                fitting = [k for k in (1, 2, 4, 8, 16) if (size // k) ** 2 >= num_sets]
                raise UsageError(
                    f"region {region}: its side must divide size {size} and leave at least {num_sets} regions,"
                    f" e.g. {', '.join(map(str, fitting))}"
                )
        preprocess = Preprocess(size=(size, size), resize=resize, mean=(0.5,) * 3, std=(0.5,) * 3)
        super().__init__(preprocess=preprocess, epochs=epochs, batch_size=batch_size)
        self.save_hyperparameters()
        self.network = InpaintingUNet(width=width).to(memory_format=torch.channels_last)  # 25 % faster on CPUs
        self.size, self.regions, self.num_sets, self.smooth = size, tuple(regions), num_sets, smooth
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.patience = patience
        self.needs_stopping_images = patience > 0
        self.scale = PixelScale((size, size)) if score == "standardised" else nn.Identity()
        self.pooling = ScorePooling(pooling, top=top, cell=CELL)
        self.tiling = pooled_tiling(
            Seamless(stride=size)  # the sets repeat with this period; the U-Net's stride divides it
            if score == "map"
            else WindowsOnly("its score has a scale for each position in the input (use score map)"),
            pooling=self.pooling,
        )
        self.ssim, self.msgms = Ssim(), GradientSimilarity()
        fixed = torch.Generator().manual_seed(seed)
        self.register_buffer("sets", torch.stack([self._draw(region, fixed) for region in self.regions]))
        self._generator = torch.Generator().manual_seed(seed + 1)
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    def _draw(self, region: int, generator: torch.Generator) -> Tensor:
        return draw_sets(size=self.size, region=region, num_sets=self.num_sets, generator=generator)

    def reconstruct(self, x: Tensor, sets: Tensor) -> Tensor:
        """Inpaint every set of regions from the rest of the image, and combine the results.

        Args:
            x: (N, 3, h, w) in [-1, 1].
            sets: (h, w) uint8, index of each pixel's set.

        Returns:
            x_hat (N, 3, h, w) float32 in [-1, 1].
        """
        # sets are on the batch axis, region sizes are not: few copies of the network in the graph, bounded memory
        hidden = sets == torch.arange(self.num_sets, device=x.device, dtype=torch.uint8)[:, None, None, None]  # 1 - M_i
        visible = x[:, None].masked_fill(hidden, 0.0)  # (N, n, 3, h, w)
        inpainted = self.network(visible.flatten(0, 1)).float().unflatten(0, (-1, self.num_sets))
        return torch.where(hidden, inpainted, 0.0).sum(dim=1)

    def _loss(self, x: Tensor, sets: Tensor) -> dict[str, Tensor]:
        """Three terms of the loss, each a mean over the region of interest."""
        x_hat = self.reconstruct(x, sets)
        with torch.autocast(self.device.type, enabled=False):  # a difference of squares needs full precision
            image, reconstruction = (x + 1) / 2, (x_hat + 1) / 2
            maps = {
                "msgms": 1 - self.msgms(image, reconstruction),
                "ssim": 1 - self.ssim(image, reconstruction),
                "l2": ((x - x_hat) ** 2).mean(dim=1),
            }
            inside = self.preprocess.roi
            return {name: part[:, inside].mean() for name, part in maps.items()}

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Compute the loss of the reconstruction for a random region size and random sets."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        region = self.regions[int(torch.randint(len(self.regions), (), generator=self._generator))]
        terms = self._loss(x, self._draw(region, self._generator).to(x.device))
        for name, term in terms.items():
            self.log(name, term)
        loss = torch.stack(list(terms.values())).sum()
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log the mean loss of early-stopping validation images over the region sizes, with the fixed sets."""
        x = self.preprocessed(batch)
        losses = [torch.stack(list(self._loss(x, sets).values())).sum() for sets in self.sets]
        self.log("stopping", torch.stack(losses).mean(), batch_size=len(x))

    def configure_callbacks(self) -> list[Callback]:
        """Early stopping if `patience` is not 0."""
        return [EarlyStopping(monitor="stopping", patience=self.patience)] if self.patience else []

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with a constant learning rate, and a tenth of it over the last sixth of the steps."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        milestone = max(1, int(self.trainer.estimated_stepping_batches) * 5 // 6)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [milestone], gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Measure mean and deviation of each pixel of the map over the training images, with the final weights."""
        if isinstance(self.scale, PixelScale):
            self.eval()
            self.scale.measure((self._map(x) for x in self.training_inputs()), roi=self.preprocess.roi)

    def _sets_of(self, x: Tensor) -> list[Tensor]:
        """Sets (h, w) of each region size for x (N, 3, h, w), repeated periodically over a large image."""
        if self.preprocess.resize != "native":
            return list(self.sets)
        rows, columns = (torch.arange(length, device=x.device) % self.size for length in x.shape[2:])
        return [sets.index_select(0, rows).index_select(1, columns) for sets in self.sets]

    def dependence(self, x: Tensor) -> Tensor:
        """Compute the map of the first region size only; the other sizes have the same receptive field."""
        r = 1 - self.msgms(x, self.reconstruct(x, self._sets_of(x)[0]))
        return smoothed(r, window=self.smooth)

    def _map(self, x: Tensor) -> Tensor:
        """Smoothed mean of 1 - MSGMS of x and x_hat over the region sizes, (N, h, w)."""
        image = (x + 1) / 2
        r = torch.zeros((), device=x.device)
        for sets in self._sets_of(x):
            r = r + 1 - self.msgms(image, (self.reconstruct(x, sets) + 1) / 2)
        return smoothed(r / len(self.regions), window=self.smooth)

    def anomaly(self, x: Tensor) -> Anomaly:
        """Compute the smoothed map 1 - MSGMS; the score is pooled from it, standardised if requested."""
        r = self._map(x)
        return Anomaly(self.pooled_score(self.scale(r)), self.inside_roi(r))
