"""Variational autoencoder: a decoder of Gaussian latents, and an encoder of the latents' posterior.

D. Kingma and M. Welling, "Auto-Encoding Variational Bayes", 2013, arXiv 1312.6114 (eq. 3 and 10; appendix B: KL
divergence; appendix C.2: Gaussian likelihood). beta: I. Higgins et al., "beta-VAE", 2017.

Notation: x -> image of D values in [0, 1]; z -> latent; q(z|x) = N(mu, sigma²) of the encoder; s2 -> variance of x about
the decoded image. Bound: log p(x) >= E_q[log N(x; decode(z), s2)] - KL(q || N(0, I)) in nats.

What differs, and why:
* One s2 for all values is learned, so that the bound applies to a density of x. A fixed s2 would require tuning beta instead.
* The networks are DCGAN's pyramids.
* The expectation in the bound is the mean over a few fixed noise values: an unbiased, reproducible estimate. The noise comes
  in pairs (e, -e), so that linear terms cancel.
* After training the prior of the decoder's code becomes N(m, C) with the moments of the training images' codes. It gives the
  largest bound of all Gaussian priors (P. Ghosh et al., "From Variational to Deterministic Autoencoders", 2020, arXiv
  1903.12436, also fit a prior after training). Codes of a few hundred images are far from N(0, I), and samples from N(0, I)
  do not look like parts. The latent z is the code in the coordinates of this prior: code = m + L z with C = L Lᵀ, z from
  N(0, I).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.dcgan import DcganDecoder, DcganEncoder
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.optim import cosine_adam
from anomaly.nn.preprocess import Resize
from anomaly.samplers.base import Density, Sampler, Score

LEAST_LOG_VARIANCE = math.log((1 / 255) ** 2 / 12)
"""Least log s2: the variance of rounding to 8 bits"""


def expected_log_likelihood(
    x: Tensor, mu: Tensor, log_variance: Tensor, *, decode: Callable[[Tensor], Tensor], noise: Tensor, log_s2: Tensor
) -> Tensor:
    """Compute the mean of log N(x; decode(z), s2) over z = mu + sigma · noise for each value of x (eq. 10).

    Args:
        x: images (N, ...).
        mu: means (N, d) of the latents.
        log_variance: log sigma², (N, d).
        decode: map from latents (N, d) to images (N, ...).
        noise: draws from N(0, 1), (K, N, d) or (K, 1, d).
        log_s2: log s2 in any shape that broadcasts with x.

    Returns:
        (N, ...) in nats.
    """
    squares = torch.zeros_like(x)
    for e in noise:
        squares = squares + (x - decode(mu + torch.exp(0.5 * log_variance) * e).float()) ** 2
    return -0.5 * (squares / len(noise) * torch.exp(-log_s2) + log_s2 + math.log(2 * math.pi))


def kl_divergence(mu: Tensor, log_variance: Tensor, *, m: Tensor, root: Tensor) -> Tensor:
    """Compute KL(N(mu, sigma²) || N(m, C)) in nats, (N,); appendix B has m = 0 and C = I.

    Args:
        mu: means (N, d).
        log_variance: log sigma², (N, d).
        m: mean (d,) of the prior.
        root: L⁻¹ (d, d) with C = L Lᵀ.
    """
    squares = ((mu - m) @ root.T) ** 2 + torch.exp(log_variance) @ (root * root).T
    return 0.5 * (squares - 1 - log_variance).sum(dim=1) - torch.diagonal(root).log().sum()


class Vae(Sampler):
    """Variational autoencoder with a Gaussian likelihood of learned variance.

    `anomaly_map` keeps the expected log-likelihood at its pixels and spreads the KL divergence evenly; the map sums to minus
    the bound. The default score is the peak of the standardised map, for small defects. `mean` without `standardise` is minus
    the bound per pixel.

    Args:
        size: side of the network's square input in pixels, a power of two of at least 16.
        resize: resizing rule, `stretch` or `letterbox`.
        width: channels of the networks at their finest resolution.
        latent: number of values of z.
        beta: weight of the KL divergence in the loss; 1 trains the bound.
        num_noise: number of noise values in the bound, even.
        score: score of the detector form: `mean` or `peak` of the anomaly map, or `top`, the mean of its largest cells.
        smooth: side of the averaging window over the anomaly map in pixels, odd; 1 for no smoothing.
        standardise: scaling of each pixel of the anomaly map by its mean and deviation over the training images.
        learning_rate: initial learning rate of Adam, which follows a cosine to zero; ten times as high for s2.
        epochs: passes over the training images.
        batch_size: images per optimisation step.
        seed: seed of the noise.
        cache_gib: memory for preprocessed images between epochs in GiB.
    """

    max_gradient_norm = 1.0  # with a small s2, one unusual batch must not undo the training
    density: ClassVar[Density] = "bound"

    noise: Tensor
    """(K, 1, d), noise of the bound"""
    prior_mean: Tensor
    """(d,), m"""
    prior_factor: Tensor
    """(d, d), L"""
    prior_root: Tensor
    """(d, d), L⁻¹"""

    def __init__(
        self,
        *,
        size: int = 64,
        resize: Resize = "stretch",
        width: int = 32,
        latent: int = 32,
        beta: float = 1.0,
        num_noise: int = 4,
        score: Score = "peak",
        smooth: int = 5,
        standardise: bool = True,
        learning_rate: float = 1e-3,
        epochs: int = 100,
        batch_size: int = 16,
        seed: int = 0,
        cache_gib: float = 2.0,
    ) -> None:
        if num_noise < 2 or num_noise % 2:
            raise UsageError(f"num_noise {num_noise}: the noise comes in pairs; give an even number, e.g. 4")
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
        self.encoder = DcganEncoder(size=size, width=width, outputs=2 * latent)
        self.decoder = DcganDecoder(size=size, width=width, inputs=latent)
        self.log_s2 = nn.Parameter(torch.tensor(math.log(0.1**2)))
        self.latent, self.beta, self.learning_rate = latent, beta, learning_rate
        self._random = torch.Generator().manual_seed(seed)
        half = torch.randn((num_noise // 2, 1, latent), generator=self._random)
        self.register_buffer("noise", torch.cat((half, -half)))
        self.register_buffer("prior_mean", torch.zeros(latent))
        self.register_buffer("prior_factor", torch.eye(latent))
        self.register_buffer("prior_root", torch.eye(latent))
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent vector."""
        return (self.latent,)

    def decode(self, z: Tensor) -> Tensor:
        """Map latents (N, d) to the means of images (N, 3, h, w) in [0, 1], 0 outside the region of interest."""
        return self._decoded(self.prior_mean + z @ self.prior_factor.T)

    def _decoded(self, code: Tensor) -> Tensor:
        x: Tensor = 0.5 * (self.decoder(code[:, :, None, None]).float() + 1)
        return x * self.preprocess.roi if self.preprocess.has_roi else x

    def encode(self, x: Tensor) -> Tensor:
        """Map images (N, 3, h, w) to the means of their latents, (N, d)."""
        return (self._posterior(x)[0] - self.prior_mean) @ self.prior_root.T

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute means mu and log-variances (N, d) of the code in float32."""
        code = self.encoder(2 * x - 1).float().flatten(1)
        # e^-12 to e^6: the variance stays finite for an unusual image
        return code[:, : self.latent], code[:, self.latent :].clamp(-12.0, 6.0)

    def _terms(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the expected log-likelihood (N, h, w), 0 outside the region of interest, and the KL divergence (N,)."""
        mu, log_variance = self._posterior(x)
        log_s2 = self.log_s2.float().clamp(min=LEAST_LOG_VARIANCE)
        likelihood = expected_log_likelihood(x, mu, log_variance, decode=self._decoded, noise=noise, log_s2=log_s2)
        kl = kl_divergence(mu, log_variance, m=self.prior_mean, root=self.prior_root)
        return likelihood.sum(dim=1) * self.preprocess.roi, kl

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Minus the bound per value, with one noise draw per image and the weight beta."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        noise = torch.randn((1, len(x), self.latent), generator=self._random).to(x.device)
        likelihood, kl = self._terms(x, noise)
        num_values = 3 * self.preprocess.roi.sum()
        reconstruction, divergence = -likelihood.sum() / len(x) / num_values, kl.mean() / num_values
        self.log("reconstruction", reconstruction)
        self.log("kl_divergence", divergence)
        return reconstruction + self.beta * divergence

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with one cosine to zero over the whole training."""
        groups: list[dict[str, Any]] = [
            {"params": [*self.encoder.parameters(), *self.decoder.parameters()]},
            {"params": [self.log_s2], "lr": 10 * self.learning_rate},
        ]
        num_steps = self.trainer.estimated_stepping_batches
        return cosine_adam(groups, num_steps=num_steps, learning_rate=self.learning_rate)

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Fit the prior to the codes of all training images, then measure the map's scale."""
        self.eval()
        codes = [self._posterior(x) for x in self.training_inputs()]
        mu, variance = (torch.cat(parts).double() for parts in zip(*((m, v.exp()) for m, v in codes), strict=True))
        covariance = torch.diag(variance.mean(dim=0)) + torch.cov(mu.T, correction=0)
        factor = torch.linalg.cholesky(covariance)
        self.prior_mean.copy_(mu.mean(dim=0))
        self.prior_factor.copy_(factor)
        self.prior_root.copy_(torch.linalg.inv(factor))
        super().on_train_end()

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Compute each pixel's share of minus the bound in nats, (N, h, w); 0 outside the region of interest."""
        likelihood, kl = self._terms(x, self.noise)
        roi = self.preprocess.roi.to(x.dtype)
        share: Tensor = (kl / roi.sum())[:, None, None] * roi - likelihood
        return share

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute a lower bound of the log-density of images (N, 3, h, w) inside the region of interest, in nats, (N,)."""
        return -self.anomaly_map(x).sum(dim=2).sum(dim=1)
