"""Drawing with a decoder: latents from N(0, I) become images; an encoder, where there is one, takes images there and back.

Notation: x -> image; z -> its latent; m -> mask of the unknown pixels.
Sources: the walk between two latents and the arithmetic on their means follow A. Radford et al., "Unsupervised representation
learning with deep convolutional generative adversarial networks", 2015, arXiv 1511.06434 (§6.3), and T. White, "Sampling
generative networks", 2016, arXiv 1609.04468 (attribute vectors; the walk on the sphere, `path` = `spherical`); inpainting by
rounds of encoding and decoding follows D. Rezende et al., "Stochastic backpropagation and approximate inference in deep
generative models", 2014, arXiv 1401.4082 (appendix F), with the encoder's mean in place of a draw.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.generation.base import Array, Options, Process

NUM_ROUNDS = 10
"""Of encoding and decoding, in inpainting"""
NUM_HYPOTHESES, PIXELS_PER_COMPONENT = 12, 6
"""Of the robust projection: random subsets, and their pixels for each component"""
NUM_TRIMS, KEPT = 4, 0.75
"""How often a subset is cut down, and to which share of it"""
NUM_GROWTHS, LIMIT = 6, 3.0
"""How often all pixels that fit are taken, and up to how many deviations one fits"""


class DecoderProcess(Process):
    """The loop of VAE, GAN and flows, over their functions `decode` and `encode`.

    Of the sampler's own facts it reads `path`: how to walk between two latents, `linear` (where it is absent) or `spherical`.
    """

    def sample(self, n: int, *, rng: np.random.Generator, options: Options) -> Array:
        """Draw n images: z = temperature · N(0, I), decoded.

        Raises:
            UsageError: a temperature below 0.
        """
        self.check("sample")
        return self._decode(self._draw(n, rng=rng, options=options))

    def reconstruct(self, x: Array, *, rng: np.random.Generator, options: Options) -> Array:
        """Encode and decode images (n, 3, h, w); nothing is drawn.

        Raises:
            UsageError: images of another size than the sampler's.
        """
        self.check("reconstruct")
        return self._decode(self._encode(x))

    def interpolate(self, a: Array, b: Array, *, num: int, options: Options) -> Array:
        """Decode `num` latents on the way from that of a (3, h, w) to that of b (3, h, w); the ends are reconstructions.

        Raises:
            UsageError: fewer than two images asked for, or two of different sizes.
        """
        self.check("interpolate")
        if num < 2:
            raise UsageError(f"{num} images on the way: both ends are among them, so ask for at least 2")
        if a.shape != b.shape:
            raise UsageError(f"images of shapes {a.shape} and {b.shape}: give two of one size")
        za, zb = self._encode(np.stack((a, b)))
        share = np.linspace(0, 1, num, dtype=np.float32).reshape(-1, *[1] * za.ndim)
        if self.facts.own.get("path", "linear") == "spherical":
            return self._decode(_on_sphere(za, zb, share))
        return self._decode((1 - share) * za + share * zb)

    def inpaint(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Draw what lies under a mask: what is unknown starts as a drawn image, then x ← (1 - m) x + m decode(encode(x)).

        Args:
            x: (n, 3, h, w).
            mask: (n, h, w), True where the image is unknown; known pixels come back as they are.
            rng: of the start.
            options: `temperature` of the start; at 0 it is the image of z = 0.

        Raises:
            UsageError: a mask of another size than the images.
        """
        self.check("inpaint")
        self._check_images(x)
        if mask.shape != (len(x), *x.shape[2:]):
            raise UsageError(f"mask of shape {mask.shape} to images of shape {x.shape}: give {(len(x), *x.shape[2:])}")
        unknown = mask[:, None]
        filled = np.where(unknown, self._decode(self._draw(len(x), rng=rng, options=options)), x)
        for _ in range(NUM_ROUNDS):
            filled = np.where(unknown, self._decode(self._encode(filled)), x)
        return filled

    def attribute(self, x: Array, present: Array, absent: Array, *, strength: float, options: Options) -> Array:
        """Decode encode(x) + strength · (mean latent of `present` - mean latent of `absent`), each (n, 3, h, w).

        Raises:
            UsageError: no image with the attribute or none without it, or images of another size than the sampler's.
        """
        self.check("attribute")
        for name, images in (("with", present), ("without", absent)):
            if not len(images):
                raise UsageError(f"no image {name} the attribute: its direction needs at least one")
        direction = self._encode(present).mean(axis=0) - self._encode(absent).mean(axis=0)
        return self._decode(self._encode(x) + np.float32(strength) * direction)

    def _draw(self, n: int, *, rng: np.random.Generator, options: Options) -> Array:
        """Latents (n, *latent_shape) from N(0, temperature² I)."""
        if not options.temperature >= 0:
            raise UsageError(f"temperature {options.temperature}: it is a factor on the deviation, give 0 or more")
        drawn = rng.standard_normal((n, *self.facts.latent_shape), dtype=np.float32)
        return drawn * np.float32(options.temperature)

    def _decode(self, z: Array) -> Array:
        return np.clip(np.asarray(self.call("decode", np.ascontiguousarray(z)), dtype=np.float32), 0, 1)

    def _encode(self, x: Array) -> Array:
        self.check("encode")
        self._check_images(x)
        z = np.asarray(self.call("encode", x), dtype=np.float32)
        expected = tuple(self.facts.latent_shape)
        if z.shape[1:] != expected:
            raise UsageError(f"latents of shape {z.shape[1:]}, {self.facts.sampler} decodes {expected}")
        return z

    def _check_images(self, x: NDArray[Any]) -> None:
        expected = (3, *self.facts.size)
        if x.ndim != 4 or x.shape[1:] != expected:
            raise UsageError(
                f"images of shape {x.shape}, {self.facts.sampler} takes (n, {expected[0]}, {expected[1]}, {expected[2]}):"
                " resize them first"
            )


def _on_sphere(a: Array, b: Array, share: Array) -> Array:
    """Turn a towards b: the arc between them, its radius going with it; the straight line where they are nearly parallel."""
    cosine = float(np.sum(a * b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    angle = float(np.arccos(np.clip(cosine, -1, 1)))
    if np.sin(angle) < 1e-4:
        return (1 - share) * a + share * b
    turned = (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)
    return np.asarray(turned, dtype=np.float32)


class LinearProcess(DecoderProcess):
    """The loop of principal components: x = mu + z B + noise of variance s2, with what that allows in closed form.

    Of the sampler's own facts it reads `noise_variance`, and `robust`: whether `reconstruct` is the robust one. mu and B
    (k, D) are read off `decode`, which is affine.
    """

    def reconstruct(self, x: Array, *, rng: np.random.Generator, options: Options) -> Array:
        """Project images (n, 3, h, w) on the components: all their pixels, or where `robust` says so those that fit."""
        if self.facts.own["robust"]:
            return self.robust(x, rng=rng)
        return super().reconstruct(x, rng=rng, options=options)

    def inpaint(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Draw what lies under a mask given the known pixels, exactly: z ~ N(M⁻¹ B (x - mu), temperature² s2 M⁻¹).

        M = B Bᵀ + s2 I, with known pixels alone in B and x - mu. At temperature 0 it is the projection with missing pixels.

        Args:
            x: (n, 3, h, w).
            mask: (n, h, w), True where the image is unknown; known pixels come back as they are.
            rng: of the draws.
            options: `temperature` of z about its mean.

        Raises:
            UsageError: a mask of another size than the images.
        """
        self.check("inpaint")
        self._check_images(x)
        if mask.shape != (len(x), *x.shape[2:]):
            raise UsageError(f"mask of shape {mask.shape} to images of shape {x.shape}: give {(len(x), *x.shape[2:])}")
        mean, basis = self._affine
        deviation = np.sqrt(float(self.facts.own["noise_variance"]))
        z = self._draw(len(x), rng=rng, options=options)
        for number, (image, unknown) in enumerate(zip(x, mask, strict=True)):
            known = np.broadcast_to(~unknown, image.shape)
            part = basis[:, known]
            root = np.linalg.cholesky(part @ part.T + deviation**2 * np.eye(len(basis)))
            seen = np.linalg.solve(root, part @ (image[known] - mean[known]))
            z[number] = np.linalg.solve(root.T, seen + deviation * z[number])
        return np.where(mask[:, None], self._decode(z), x)

    def robust(self, x: Array, *, rng: np.random.Generator) -> Array:
        """Reconstruct images (n, 3, h, w) as if what hides part of them were not there.

        A. Leonardis and H. Bischof, "Robust Recognition Using Eigenimages", 2000, Computer Vision and Image Understanding
        78: hypotheses from random subsets of pixels, each trimmed of its worst ones and grown to all pixels that fit; the
        one by which the image has the shortest description is taken. A pixel that fits costs r² / (2 s2) nats over its
        channels, one that does not costs as much as the worst that does. One hypothesis is kept, not several: there is one
        part in an image.

        Raises:
            UsageError: images of another size than the sampler's.
        """
        self._check_images(x)
        return self._decode(np.stack([self._fitted(image, rng) for image in x]))

    def _fitted(self, image: Array, rng: np.random.Generator) -> Array:
        """The latent (k,) of the hypothesis that describes an image (3, h, w) in the fewest nats."""
        mean, basis = self._affine
        varied = (basis != 0).any(axis=(0, 1))  # not so outside a region of interest
        centred, part = (image - mean)[:, varied], basis[:, :, varied]  # (3, P), (k, 3, P)
        noise = float(self.facts.own["noise_variance"])
        num_pixels = centred.shape[1]
        shortest, best = np.inf, np.zeros(len(basis))
        for _ in range(NUM_HYPOTHESES):
            chosen = rng.choice(num_pixels, size=min(num_pixels, PIXELS_PER_COMPONENT * len(basis)), replace=False)
            for _ in range(NUM_TRIMS):
                z, error = _least_squares(centred[:, chosen], part[:, :, chosen], noise)
                chosen = chosen[np.argsort(error)[: int(KEPT * len(chosen))]]
            for _ in range(NUM_GROWTHS):
                error = _squares(centred, part, z)
                limit = LIMIT**2 * max(noise, float(np.median(error)))
                chosen = np.flatnonzero(error <= limit)
                z, _ = _least_squares(centred[:, chosen], part[:, :, chosen], noise)
            length = np.minimum(_squares(centred, part, z), LIMIT**2 * noise).sum() + noise * (z @ z) / 3
            if length < shortest:
                shortest, best = length, z
        return best.astype(np.float32)

    @cached_property
    def _affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The mean mu (3, h, w) and B (k, 3, h, w)."""
        (k,) = self.facts.latent_shape
        decoded = self.call("decode", np.vstack((np.zeros((1, k)), np.eye(k))).astype(np.float32)).astype(np.float64)
        return decoded[0], decoded[1:] - decoded[0]


def _least_squares(
    centred: NDArray[np.float64], part: NDArray[np.float64], noise: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The most probable latent (k,) given pixels (3, p) alone, and the mean squared error at each."""
    rows = part.reshape(len(part), -1)
    z = np.asarray(np.linalg.solve(rows @ rows.T + noise * np.eye(len(rows)), rows @ centred.reshape(-1)), np.float64)
    return z, _squares(centred, part, z)


def _squares(centred: NDArray[np.float64], part: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean squared error (p,) over the channels of pixels (3, p)."""
    squares: NDArray[np.float64] = ((centred - np.tensordot(z, part, axes=1)) ** 2).mean(axis=0)
    return squares
