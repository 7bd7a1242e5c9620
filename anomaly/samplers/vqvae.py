"""VQ-VAE: an image as a grid of codes from a learned codebook, and a PixelCNN prior of such grids.

A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning", 2017, arXiv 1711.00937 (nearest vector,
eq. 1 and 2; loss, eq. 3; codebook by moving averages, appendix A.1; prior, section 3.3).

Notation: x -> image in [0, 1]; u -> encoder's output, (N, D, gh, gw); e -> codebook vectors, (K, D); d -> squared distances of
u to e, (N, K, gh, gw); code -> number of the nearest vector; q -> its vector; x_hat -> decode(q).
What differs, and why:
* Rarely used vectors restart at the encoder's output of a random cell, also before the first step. The whole codebook is then
  in use.
* In the first steps the decoder receives u itself. A codebook of an untrained encoder would spend its vectors on the
  background.
* The squared error is divided by the batch's variance, so that `commitment` has the same weight at any contrast.
* One strided convolution leads to the grid and one from it. Two in sequence learned faint detail several times slower.
* Both phases share one fit: the last `prior_epochs` epochs train the prior; encoder, codebook and decoder stay fixed.
* The detector's map mixes vectors at nearly equal distance with weights softmax(-d / T). With the nearest vector alone,
  rounding would decide the verdict.
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
from anomaly.samplers._codebook import Codebook
from anomaly.samplers.base import Sampler, Score


class _Residual(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, y: Tensor) -> Tensor:
        return y + super().forward(y)  # type: ignore[no-untyped-call,no-any-return]


class VqVae(Sampler):
    """VQ-VAE with a PixelCNN prior.

    The latent is a grid of codes, (N, grid, grid) int64. The detector form scores each pixel by its reconstruction error plus
    the weighted -log p of its cell's code.

    Args:
        size: side of the network's square input in pixels, an even multiple of `grid`.
        resize: resizing rule, `stretch` or `letterbox`.
        grid: side of the grid of codes.
        num_codes: number of codebook vectors.
        dimensions: number of values of a codebook vector.
        width: channels of encoder and decoder.
        commitment: weight of the distance between the encoder's output and its codes.
        free_share: share of the first phase without quantisation.
        decay: decay of the codebook's moving averages.
        min_use: least use of a codebook vector before it restarts, as a share of even use.
        prior_width: channels of the prior.
        prior_layers: number of layers of the prior.
        prior_weight: weight of the code's -log p in nats in the anomaly map.
        measure: reconstruction error in the map: squared error `l2`, or `msgms`, a comparison of gradients at four scales.
        score: score of the detector form: `mean` or `peak` of the anomaly map, or `top`, the mean of its largest cells.
        smooth: side of the averaging window over the anomaly map in pixels, odd; 1 for no smoothing.
        standardise: scaling of each pixel of the anomaly map by its mean and deviation over the training images.
        learning_rate: initial learning rate of Adam in each phase, which follows a cosine to zero.
        epochs: passes over the training images in both phases together.
        prior_epochs: number of last epochs, which train the prior.
        batch_size: images per optimisation step.
        seed: seed of the restarts of codebook vectors.
        cache_gib: memory for preprocessed images and codes between epochs in GiB.
    """

    max_gradient_norm = 1.0
    density = "none"
    loop = "codes"
    unsupported = {  # noqa: RUF012 - a class constant, declared by the base
        "log_prob": "its prior is a probability of codes, and its decoder has no noise model",
        "interpolate": "its codes are indices, without values in between",
        "attribute": "its codes are indices, which cannot be added",
    }

    perplexity: Tensor
    """() float32, exp of the entropy of the training images' codes after training; at most `num_codes`"""

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
            raise UsageError(
                f"grid {grid}: the size {size} must be an even multiple of it; give e.g. {max(1, size // 4)}"
            )
        if not 0 < prior_epochs < epochs:
            raise UsageError(
                f"prior_epochs {prior_epochs}: both phases need some of the {epochs} epochs; give e.g. {max(1, epochs // 2)}"
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

    # exported functions

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Rows and columns of the grid of codes."""
        return self.grid, self.grid

    def encode(self, x: Tensor) -> Tensor:
        """Map images (N, 3, h, w) to codes (N, gh, gw) int64."""
        return self.codebook.nearest(self._encoder_output(x))

    def decode(self, codes: Tensor) -> Tensor:
        """Map codes (N, gh, gw) int64 to images (N, 3, h, w) in [0, 1]."""
        return self._reconstruction(self.codebook.look_up(codes))

    def prior_logits(self, codes: Tensor) -> Tensor:
        """Compute logits (N, K, gh, gw) of each code, given the codes before it in raster order."""
        return self._prior(functional.one_hot(codes, self.num_codes).permute(0, 3, 1, 2).float())

    def functions(self) -> dict[str, tuple[Tensor, ...]]:
        """Name `encode`, `decode` and `prior_logits`; codes are int64."""
        codes = torch.full((2, *self.latent_shape), self.num_codes - 1)
        return {
            "encode": (torch.zeros(2, 3, *self.preprocess.size),),
            "decode": (codes,),
            "prior_logits": (codes,),
        }

    def _encoder_output(self, x: Tensor) -> Tensor:
        """Compute u (N, D, gh, gw), float32."""
        return self.encoder(2 * x - 1).float()  # type: ignore[no-any-return]

    def _reconstruction(self, q: Tensor) -> Tensor:
        """Compute x_hat (N, 3, h, w), float32; black outside the region of interest, like the images."""
        x_hat: Tensor = torch.sigmoid(self.decoder(q).float())
        return x_hat * self.preprocess.roi if self.preprocess.has_roi else x_hat

    def _prior(self, shares: Tensor) -> Tensor:
        return self.prior(self.embed(shares))[:, 0].float()  # type: ignore[no-any-return]

    # detector form

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Compute the reconstruction error plus `prior_weight` times -log p of the cell's code, (N, h, w)."""
        shares = self.codebook.shares(self._encoder_output(x))
        x_hat = self._reconstruction(functional.conv2d(shares, self.codebook.vectors.T[:, :, None, None]))
        r = ((x - x_hat) ** 2).mean(dim=1) if self.measure == "l2" else 1 - self.msgms(x, x_hat)
        if self.prior_weight:
            nats = -(shares * torch.log_softmax(self._prior(shares), dim=1)).sum(dim=1, keepdim=True)
            r = r + self.prior_weight * functional.interpolate(nats, x.shape[2:], mode="bilinear")[:, 0]
        return r

    # training

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of the autoencoder (eq. 3); in the last epochs the mean -log p of a code under the prior."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        x = x.contiguous()  # cached or not, one memory layout and so one rounding
        if self.global_step >= self._num_first():
            return self._prior_loss(batch, x)
        u = self._encoder_output(x)
        q = u.detach()
        if self.global_step >= self.free_share * self._num_first():
            with torch.autocast(self.device.type, enabled=False):  # full precision for the choice of codes
                self.codebook.follow(q, generator=self._random)
                q = self.codebook.look_up(self.codebook.nearest(q))
        x_hat = self._reconstruction(u + (q - u).detach())
        seen = x[:, :, self.preprocess.roi]
        error = ((x_hat[:, :, self.preprocess.roi] - seen) ** 2).mean() / seen.var().clamp(min=1e-4)
        commitment = ((u - q) ** 2).mean()
        self.log("error", error, prog_bar=True)
        self.log("commitment", commitment)
        return error + self.commitment * commitment

    def _prior_loss(self, batch: Batch, x: Tensor) -> Tensor:
        def encode() -> list[Tensor]:
            with torch.autocast(self.device.type, enabled=False):
                return [self.encode(x)]

        (codes,) = self._codes.lookup(batch.path, encode)
        loss = functional.cross_entropy(self.prior_logits(codes), codes)
        self.log("prior", loss, prog_bar=True)
        return loss

    def _num_first(self) -> int:
        """Number of steps of the first phase."""
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
    """Build the encoder: one strided convolution of overlapping patches, two residual blocks, one vector per cell."""
    enter = nn.Conv2d(3, width, 2 * step, stride=step, padding=step // 2)
    nn.init.xavier_uniform_(enter.weight)  # the default passes little of a dark image
    return nn.Sequential(enter, _Residual(width), _Residual(width), nn.Conv2d(width, dimensions, 1))


def _decoder(step: int, width: int, dimensions: int) -> nn.Sequential:
    """Build the decoder from q to the logits of images, the mirror image of the encoder."""
    leave = nn.ConvTranspose2d(width, 3, 2 * step, stride=step, padding=step // 2)
    enter = nn.Conv2d(dimensions, width, 3, padding=1)
    return nn.Sequential(enter, _Residual(width), _Residual(width), leave)
