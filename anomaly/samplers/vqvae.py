"""VQ-VAE: an image as a grid of codes out of a learned book, and a PixelCNN that draws such grids.

A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning", 2017, arXiv 1711.00937 (nearest vector,
eq. 1 and 2; loss, eq. 3; the book by moving averages, appendix A.1; the prior, section 3.3).

Notation: x -> image in [0, 1]; u -> what the encoder says of a cell, (N, D, gh, gw); e -> the book's vectors, (K, D);
d -> squared distances of u to e, (N, K, gh, gw); code -> number of the nearest; q -> its vector; x_hat -> decode(q).
What differs, and why: vectors that hardly any cell is nearest to start anew at what the encoder says of a cell drawn at
random, also before the first step, so that the whole book is in use. In the first steps the decoder is given u itself: a
book made from an encoder that known_options nothing yet spends its vectors on the background. The squared error is divided by the
variance of the batch, so that `commitment` weighs the same whatever the contrast of the part. One strided convolution leads
to the grid and one from it: two after another learned faint detail several times slower. Both phases share one fit: the
last `prior_epochs` of its epochs train the prior, with encoder, book and decoder at rest.
The map of the detector mixes the vectors that are all but equally near, with weights softmax(-d / T): the nearest one of
two equally near ones hangs on a rounding, and a verdict must not.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.masked_convolution import GatedMaskedNetwork
from anomaly.nn.preprocess import Resize
from anomaly.nn.similarity import GradientSimilarity
from anomaly.samplers.base import Sampler, Score

SHARPNESS = 0.15
"""T in units of the usual distance of a cell to its nearest vector"""


class Codebook(nn.Module):
    """The vectors e, which follow the means of the cells that they are nearest to.

    Args:
        num_codes: K.
        dimensions: D.
        decay: of the moving averages.
        min_use: moving average of the share of cells, times K, below which a vector starts anew; 1 is an even use.
    """

    vectors: Tensor
    use: Tensor
    total: Tensor
    usual: Tensor

    def __init__(self, *, num_codes: int, dimensions: int, decay: float, min_use: float) -> None:
        super().__init__()
        self.decay, self.min_use = decay, min_use
        self.register_buffer("vectors", torch.zeros(num_codes, dimensions))
        self.register_buffer("use", torch.zeros(num_codes))  # N_i of eq. 6, over an even use
        self.register_buffer("total", torch.zeros(num_codes, dimensions))  # m_i of eq. 7
        self.register_buffer("usual", torch.ones(()))  # mean of min d, by moving average

    def distances(self, u: Tensor) -> Tensor:
        """Squared distances d (N, K, gh, gw) of u (N, D, gh, gw)."""
        # by differences: as a difference of squares they lose digits, and near ties hang on those
        return ((u[:, None] - self.vectors[:, :, None, None]) ** 2).sum(dim=2)

    def nearest(self, u: Tensor) -> Tensor:
        """Number of the nearest vector of each cell, (N, gh, gw) int64 (eq. 1)."""
        return self.distances(u).argmin(dim=1)

    def shares(self, u: Tensor) -> Tensor:
        """Weights softmax(-d / T) (N, K, gh, gw): 1 for the nearest vector unless another is all but equally near."""
        d = self.distances(u)
        return torch.softmax((d.amin(dim=1, keepdim=True) - d) / (SHARPNESS * self.usual + 1e-6), dim=1)

    def look_up(self, code: Tensor) -> Tensor:
        """Vectors q (N, D, gh, gw) of codes (N, gh, gw) (eq. 2)."""
        found = self.vectors.index_select(0, code.flatten())
        return torch.unflatten(found, 0, code.shape).permute(0, 3, 1, 2)

    @torch.no_grad()
    def follow(self, u: Tensor, *, generator: torch.Generator) -> None:
        """Start unused vectors anew, then move all towards the cells of a batch (eq. 6 to 8)."""
        cells = u.permute(0, 2, 3, 1).flatten(0, 2)
        unused = self.use < self.min_use
        if unused.any():
            chosen = torch.randint(len(cells), (int(unused.sum()),), generator=generator).to(u.device)
            self.vectors[unused], self.total[unused], self.use[unused] = cells[chosen], cells[chosen], 1.0
        d = self.distances(u)
        own = functional.one_hot(d.argmin(dim=1).flatten(), len(self.vectors)).to(cells)
        scale = len(self.vectors) / len(cells)
        self.use.lerp_(scale * own.sum(dim=0), 1 - self.decay)
        self.total.lerp_(scale * (own.T @ cells), 1 - self.decay)
        self.usual.lerp_(d.amin(dim=1).mean(), 1 - self.decay)
        self.vectors.copy_(self.total / self.use[:, None].clamp(min=1e-4))


class _Residual(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, y: Tensor) -> Tensor:
        return y + super().forward(y)  # type: ignore[no-untyped-call,no-any-return]


class VqVae(Sampler):
    """VQ-VAE with a PixelCNN prior.

    Its latent is a grid of codes, (N, grid, grid) int64. As a detector it says how badly a pixel is rebuilt, and, weighted,
    how improbable the prior takes the code of its cell for.

    Args:
        size: side of the network's square input in pixels, an even multiple of the grid's.
        resize: `stretch` or `letterbox`.
        grid: side of the grid of codes.
        num_codes: vectors of the book.
        dimensions: of each of them.
        width: channels of encoder and decoder.
        commitment: weight of the encoder's distance to its codes.
        free_share: share of the first phase in which the decoder is given u itself.
        decay: of the moving averages of the book.
        min_use: share of an even use below which a vector of the book starts anew.
        prior_width: channels of the prior.
        prior_layers: of the prior.
        prior_weight: weight in the map of the code's -log p in nats, beside the residual.
        measure: the residual, `l2`, the squared error, or `msgms`, which compares gradients at four scales.
        score: `mean` of the map or its `peak`.
        smooth: side in pixels of the averaging window over the map, odd; 1 leaves it.
        standardise: whether each pixel of the map is measured by mean and deviation of the training images there.
        learning_rate: of Adam, at the start of each phase's cosine.
        epochs: passes over the training images, of both phases together.
        prior_epochs: how many of them, the last ones, train the prior.
        batch_size: images per step.
        seed: of the cells at which vectors start anew.
        cache_gib: memory in GiB for preprocessed images and codes kept between epochs.
    """

    max_gradient_norm = 1.0
    density = "none"
    loop = "codes"
    unsupported = {  # noqa: RUF012 - a constant of the class, as the base declares it
        "log_prob": "its prior tells the probability of the codes, and its decoder has no model of the noise",
        "interpolate": "its codes are numbers of a list, with nothing between them",
        "attribute": "its codes are numbers of a list, which cannot be added",
    }

    perplexity: Tensor
    """() float32, exp of the entropy of the codes of the training images, at the end of training; of `num_codes` at most"""

    def __init__(
        self,
        *,
        size: int = 64,
        resize: Resize = "stretch",
        grid: int = 16,
        num_codes: int = 128,
        dimensions: int = 16,
        width: int = 64,
        commitment: float = 0.25,
        free_share: float = 0.3,
        decay: float = 0.98,
        min_use: float = 0.05,
        prior_width: int = 48,
        prior_layers: int = 3,
        prior_weight: float = 0.01,
        measure: Literal["l2", "msgms"] = "msgms",
        score: Score = "peak",
        smooth: int = 3,
        standardise: bool = True,
        learning_rate: float = 5e-3,
        epochs: int = 60,
        prior_epochs: int = 20,
        batch_size: int = 4,
        seed: int = 0,
        cache_gib: float = 2.0,
    ) -> None:
        step = size // grid if grid > 0 else 0  # pixels of a cell's side
        if step < 2 or step % 2 or grid * step != size:
            raise UsageError(f"grid {grid}: the size {size} is an even multiple of it, e.g. {max(1, size // 4)}")
        if not 0 < prior_epochs < epochs:
            raise UsageError(
                f"prior_epochs {prior_epochs}: both phases need some of the {epochs} epochs, e.g. {max(1, epochs // 2)}"
            )
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
        self.encoder = _encoder(step, width, dimensions)
        self.codebook = Codebook(num_codes=num_codes, dimensions=dimensions, decay=decay, min_use=min_use)
        self.decoder = _decoder(step, width, dimensions)
        self.embed = nn.Conv2d(num_codes, prior_width, 1)
        self.prior = GatedMaskedNetwork(
            (grid, grid),
            num_groups=1,
            inputs=prior_width,
            num_classes=num_codes,
            width=prior_width,
            num_layers=prior_layers,
            kernel=5,
            place=16,
        )
        self.grid, self.num_codes = grid, num_codes
        self.commitment, self.free_share = commitment, free_share
        self.prior_weight, self.measure = prior_weight, measure
        self.msgms = GradientSimilarity()
        self.learning_rate, self.prior_epochs = learning_rate, prior_epochs
        self.register_buffer("perplexity", torch.zeros(()))
        self._random = torch.Generator().manual_seed(seed)
        self._cache, self._codes = (FeatureCache(max_bytes=int(cache_gib * 2**29)) for _ in range(2))

    # the exported functions

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Rows and columns of the grid of codes."""
        return self.grid, self.grid

    def encode(self, x: Tensor) -> Tensor:
        """Map images (N, 3, h, w) to codes (N, gh, gw) int64."""
        return self.codebook.nearest(self._said(x))

    def decode(self, codes: Tensor) -> Tensor:
        """Map codes (N, gh, gw) int64 to images (N, 3, h, w) in [0, 1]."""
        return self._rebuilt(self.codebook.look_up(codes))

    def prior_logits(self, codes: Tensor) -> Tensor:
        """Logits (N, K, gh, gw) of each code, given those before it in raster order."""
        return self._prior(functional.one_hot(codes, self.num_codes).permute(0, 3, 1, 2).float())

    def functions(self) -> dict[str, tuple[Tensor, ...]]:
        """`encode`, `decode` and `prior_logits`; codes are int64."""
        codes = torch.full((2, *self.latent_shape), self.num_codes - 1)
        return {
            "encode": (torch.zeros(2, 3, *self.preprocess.size),),
            "decode": (codes,),
            "prior_logits": (codes,),
        }

    def _said(self, x: Tensor) -> Tensor:
        """What the encoder says, u (N, D, gh, gw), float32."""
        return self.encoder(2 * x - 1).float()  # type: ignore[no-any-return]

    def _rebuilt(self, q: Tensor) -> Tensor:
        """x_hat (N, 3, h, w), float32; black outside the region of interest, as images are."""
        x_hat: Tensor = torch.sigmoid(self.decoder(q).float())
        return x_hat * self.preprocess.roi if self.preprocess.has_roi else x_hat

    def _prior(self, shares: Tensor) -> Tensor:
        return self.prior(self.embed(shares))[:, 0].float()  # type: ignore[no-any-return]

    # as a detector

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Residual of the reconstruction, and `prior_weight` times the -log p of the code of its cell, (N, h, w)."""
        shares = self.codebook.shares(self._said(x))
        x_hat = self._rebuilt(functional.conv2d(shares, self.codebook.vectors.T[:, :, None, None]))
        r = ((x - x_hat) ** 2).mean(dim=1) if self.measure == "l2" else 1 - self.msgms(x, x_hat)
        if self.prior_weight:
            nats = -(shares * torch.log_softmax(self._prior(shares), dim=1)).sum(dim=1, keepdim=True)
            r = r + self.prior_weight * functional.interpolate(nats, x.shape[2:], mode="bilinear")[:, 0]
        return r

    # training

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of the autoencoder (eq. 3) or, in the last epochs, mean -log p of a code under the prior."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        x = x.contiguous()  # one memory layout, cached or not: the kernel that it chooses rounds its own way
        if self.global_step >= self._num_first():
            return self._prior_loss(batch, x)
        u = self._said(x)
        q = u.detach()
        if self.global_step >= self.free_share * self._num_first():
            with torch.autocast(self.device.type, enabled=False):  # distances decide between codes
                self.codebook.follow(q, generator=self._random)
                q = self.codebook.look_up(self.codebook.nearest(q))
        x_hat = self._rebuilt(u + (q - u).detach())
        seen = x[:, :, self.preprocess.roi]
        error = ((x_hat[:, :, self.preprocess.roi] - seen) ** 2).mean() / seen.var().clamp(min=1e-4)
        committed = ((u - q) ** 2).mean()
        self.log("error", error, prog_bar=True)
        self.log("commitment", committed)
        return error + self.commitment * committed

    def _prior_loss(self, batch: Batch, x: Tensor) -> Tensor:
        def look() -> list[Tensor]:
            with torch.autocast(self.device.type, enabled=False):
                return [self.encode(x)]

        (codes,) = self._codes.lookup(batch.path, look)
        loss = functional.cross_entropy(self.prior_logits(codes), codes)
        self.log("prior", loss, prog_bar=True)
        return loss

    def _num_first(self) -> int:
        """Steps of the first phase."""
        total = int(self.trainer.estimated_stepping_batches)
        return max(1, round(total * (1 - self.prior_epochs / self.epochs)))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam, with one cosine to zero over each phase."""
        first, total = self._num_first(), max(2, int(self.trainer.estimated_stepping_batches))

        def cosine(done: float) -> float:
            return 0.5 * (1 + math.cos(math.pi * done)) if 0 <= done < 1 else 0.0

        groups = ((self.encoder, self.decoder), (self.embed, self.prior))
        optimizer = torch.optim.Adam(
            [{"params": [p for network in group for p in network.parameters()]} for group in groups],
            lr=self.learning_rate,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, [lambda step: cosine(step / first), lambda step: cosine((step - first) / max(1, total - first))]
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Measure the perplexity of the codes and the map's scale over the training images."""
        self.eval()
        count = torch.zeros(self.num_codes, dtype=torch.float64, device=self.device)
        for x in self.training_inputs():
            count += torch.bincount(self.encode(x).flatten(), minlength=self.num_codes)
        share = count / count.sum()
        self.perplexity.copy_(torch.exp(torch.special.entr(share).sum()))
        self.measure_scale()


def _encoder(step: int, width: int, dimensions: int) -> nn.Sequential:
    """From images to u: one strided convolution of overlapping patches, two residual blocks, one vector a cell."""
    enter = nn.Conv2d(3, width, 2 * step, stride=step, padding=step // 2)
    nn.init.xavier_uniform_(enter.weight)  # the usual one lets little of a dark image through
    return nn.Sequential(enter, _Residual(width), _Residual(width), nn.Conv2d(width, dimensions, 1))


def _decoder(step: int, width: int, dimensions: int) -> nn.Sequential:
    """From q to the logits of images: the encoder the other way round."""
    leave = nn.ConvTranspose2d(width, 3, 2 * step, stride=step, padding=step // 2)
    enter = nn.Conv2d(dimensions, width, 3, padding=1)
    return nn.Sequential(enter, _Residual(width), _Residual(width), leave)
