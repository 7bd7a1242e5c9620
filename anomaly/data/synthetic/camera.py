"""From a lit scene to the image of a machine-vision camera."""

from __future__ import annotations

import cv2
import numpy as np

from anomaly.data.synthetic.rendered_part import Field, Image

SHOULDER = 0.78  # signal above which highlights roll off instead of clipping


def capture(scene: Field, *, rng: np.random.Generator) -> Image:
    """Capture a scene as an image (H, W, 3) uint8, with fall-off, lens blur, exposure drift and sensor noise.

    Noise is photon noise (its variance grows with the signal) plus read noise, about one to three grey levels.

    Args:
        scene: float32 (H, W, 3) in display units: 0 black, 1 white, highlights above 1.
        rng: random generator of light, exposure and noise.
    """
    height, width = scene.shape[:2]
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    slope_x, slope_y, falloff = rng.normal((-0.04, -0.06, 0.10), (0.012, 0.012, 0.02))
    light = (1.0 + slope_x * x + slope_y * y - falloff * (x * x + y * y)).astype(np.float32)
    gain = rng.normal(1.0, 0.018) * rng.normal(1.0, 0.004, 3)
    signal = scene * cv2.merge([light * np.float32(colour) for colour in gain])
    signal = cv2.GaussianBlur(signal, (0, 0), rng.uniform(0.45, 0.7))
    signal = np.where(signal > SHOULDER, SHOULDER + 0.22 * np.tanh((signal - SHOULDER) / 0.22), np.maximum(signal, 0.0))
    grain = rng.standard_normal(scene.shape, dtype=np.float32)
    noise = grain * np.sqrt(0.0035**2 + 0.0085**2 * signal, dtype=np.float32)
    return np.asarray(np.clip((signal + noise) * 255.0, 0.0, 255.0).round(), dtype=np.uint8)
