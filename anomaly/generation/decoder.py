"""Sampling loop over a decoder and an optional encoder: VAE, GAN and normalizing flows.

Notation: x -> image; z -> its latent, drawn from N(0, I); m -> mask of the unknown pixels.
Sources: A. Radford et al., "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks",
2015, arXiv 1511.06434 (§6.3: linear interpolation and arithmetic of latents); T. White, "Sampling Generative Networks", 2016,
arXiv 1609.04468 (attribute vectors; spherical interpolation); D. Rezende et al., "Stochastic Backpropagation and Approximate
Inference in Deep Generative Models", 2014, arXiv 1401.4082 (appendix F: inpainting by rounds of encoding and decoding).
The inpainting here uses the encoder's mean in place of a draw.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.generation.base import Array, Options, SamplingLoop, check_interpolation, check_mask

NUM_ROUNDS = 10
"""Rounds of encoding and decoding in inpainting"""


class DecoderLoop(SamplingLoop):
    """Sampling loop over `decode` and `encode`.

    The setting `path` is the interpolation between two latents: `linear`, the default, or `spherical`.
    """

    def sample(self, n: int, *, rng: np.random.Generator, options: Options) -> Array:
        """Draw n images: decode z = temperature · N(0, I).

        Raises:
            UsageError: the temperature is below 0.
        """
        self.check("sample")
        return self._decode(self._draw(n, rng=rng, options=options))

    def reconstruct(self, x: Array, *, rng: np.random.Generator, options: Options) -> Array:
        """Encode and decode images (n, 3, h, w), without random numbers.

        Raises:
            UsageError: the images do not have the sampler's size.
        """
        self.check("reconstruct")
        return self._decode(self._encode(x))

    def interpolate(self, a: Array, b: Array, *, num: int, options: Options) -> Array:
        """Decode `num` latents between those of a (3, h, w) and b (3, h, w); the ends are reconstructions.

        Raises:
            UsageError: fewer than two images, or two images of different sizes.
        """
        self.check("interpolate")
        check_interpolation(a, b, num=num)
        za, zb = self._encode(np.stack((a, b)))
        share = np.linspace(0, 1, num, dtype=np.float32).reshape(-1, *[1] * za.ndim)
        if self.info.settings.get("path", "linear") == "spherical":
            return self._decode(_spherical(za, zb, share))
        return self._decode((1 - share) * za + share * zb)

    def inpaint(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Draw the pixels under a mask: they start as a drawn image, then x ← (1 - m) x + m decode(encode(x)).

        Args:
            x: images (n, 3, h, w).
            mask: (n, h, w), True at unknown pixels. Known pixels stay unchanged.
            rng: random generator of the start.
            options: `temperature` of the start; 0 starts at the image of z = 0.

        Raises:
            UsageError: mask and images differ in size.
        """
        self.check("inpaint")
        self.check_images(x)
        check_mask(x, mask)
        unknown = mask[:, None]
        filled = np.where(unknown, self._decode(self._draw(len(x), rng=rng, options=options)), x)
        for _ in range(NUM_ROUNDS):
            filled = np.where(unknown, self._decode(self._encode(filled)), x)
        return filled

    def attribute(self, x: Array, present: Array, absent: Array, *, strength: float, options: Options) -> Array:
        """Decode encode(x) + strength · (mean latent of `present` - mean latent of `absent`), images (n, 3, h, w) each.

        Raises:
            UsageError: no image with or without the attribute, or images of another size.
        """
        self.check("attribute")
        for name, images in (("with", present), ("without", absent)):
            if not len(images):
                raise UsageError(f"no image {name} the attribute: give at least one")
        direction = self._encode(present).mean(axis=0) - self._encode(absent).mean(axis=0)
        return self._decode(self._encode(x) + np.float32(strength) * direction)

    def _draw(self, n: int, *, rng: np.random.Generator, options: Options) -> Array:
        """Latents (n, *latent_shape) from N(0, temperature² I)."""
        if not options.temperature >= 0:
            raise UsageError(f"temperature {options.temperature}: it is a factor on the deviation, give 0 or more")
        noise = rng.standard_normal((n, *self.info.latent_shape), dtype=np.float32)
        return noise * np.float32(options.temperature)

    def _decode(self, z: Array) -> Array:
        return np.clip(np.asarray(self.run_function("decode", np.ascontiguousarray(z)), dtype=np.float32), 0, 1)

    def _encode(self, x: Array) -> Array:
        self.check("encode")
        self.check_images(x)
        z = np.asarray(self.run_function("encode", x), dtype=np.float32)
        expected = tuple(self.info.latent_shape)
        if z.shape[1:] != expected:
            raise UsageError(f"latents of shape {z.shape[1:]}, {self.info.sampler} decodes {expected}")
        return z


def _spherical(a: Array, b: Array, share: Array) -> Array:
    """Interpolate on the arc between a and b; on the straight line where they are nearly parallel."""
    cosine = float(np.sum(a * b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    angle = float(np.arccos(np.clip(cosine, -1, 1)))
    if np.sin(angle) < 1e-4:
        return (1 - share) * a + share * b
    between = (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)
    return np.asarray(between, dtype=np.float32)
