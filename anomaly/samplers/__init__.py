"""Samplers, one family per file, and the registry of their names."""

from __future__ import annotations

SAMPLERS: dict[str, str] = {
    "gmm": "anomaly.samplers.gmm:Gmm",
    "pca": "anomaly.samplers.pca:Pca",
    "vae": "anomaly.samplers.vae:Vae",
    "gan": "anomaly.samplers.gan:Gan",
    "realnvp": "anomaly.samplers.realnvp:RealNvp",
    "glow": "anomaly.samplers.glow:Glow",
    "pixelcnn": "anomaly.samplers.pixelcnn:PixelCnn",
    "vqvae": "anomaly.samplers.vqvae:VqVae",
    "ddpm": "anomaly.samplers.ddpm:Ddpm",
    "latent_diffusion": "anomaly.samplers.latent_diffusion:LatentDiffusion",
}
"""Name -> `module:Class`, imported on first use"""
