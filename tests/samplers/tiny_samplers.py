"""Options of every registered sampler for a training of about one second."""

from __future__ import annotations

from typing import Any

FLOW = {"size": 16, "num_scales": 2, "width": 8, "smooth": 3, "epochs": 3, "batch_size": 8, "learning_rate": 3e-3}
OPTIONS: dict[str, dict[str, Any]] = {
    "gmm": {"size": 32, "patch": 4, "num_gaussians": 8, "dimensions": 8, "smooth": 3, "batch_size": 8},
    "pca": {"size": 32, "num_components": 4, "smooth": 3, "batch_size": 8},
    "vae": {"size": 16, "width": 8, "latent": 4, "epochs": 20, "batch_size": 8, "smooth": 3, "learning_rate": 3e-3},
    "gan": {"size": 16, "width": 4, "latent": 8, "epochs": 2, "batch_size": 4},
    "realnvp": FLOW,
    "glow": FLOW | {"num_steps": 2},
    "pixelcnn": {
        "size": 16,
        "levels": 8,
        "width": 24,
        "num_layers": 2,
        "kernel": 5,
        "place": 4,
        "epochs": 10,
        "batch_size": 8,
        "learning_rate": 1e-2,
    },
    "vqvae": {
        "size": 32,
        "grid": 8,
        "num_codes": 16,
        "dimensions": 8,
        "width": 16,
        "prior_width": 12,
        "prior_layers": 2,
        "epochs": 24,
        "prior_epochs": 8,
        "batch_size": 8,
        "learning_rate": 5e-3,
    },
    "ddpm": {
        "size": 16,
        "patch": 1,
        "widths": [8],
        "epochs": 20,
        "batch_size": 8,
        "smooth": 3,
        "learning_rate": 3e-3,
        "detect_steps": 1,
        "detect_strengths": [0.15, 0.3],
        "latent_steps": 5,
        "bound_steps": 6,
    },
    "latent_diffusion": {
        "size": 16,
        "autoencoder_widths": [8, 16],
        "widths": [8],
        "patch": 1,
        "epochs": 20,
        "batch_size": 8,
        "smooth": 3,
        "learning_rate": 1e-2,
        "detect_steps": 1,
        "autoencoder_share": 0.7,
    },
}
"""Options for a training of about one second"""
