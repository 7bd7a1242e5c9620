"""Equivalent inference for anomalib models whose forward depends on the batch or cannot be exported.

    Patchcore, MHPatchcore  the original compares patches in chunks whose number depends on the batch; here all at once
    Cflow                   the original takes the maximum over the whole batch, so that maps depend on other images; here
                            the maximum is over each image, as in the original for a batch of one
    Dfkde                   the original loops over images, and its probability 1 / (1 + exp(0.05 (log p - 12))) uses a
                            density p that underflows to 0; here the score is -log p, with the same ranks

Each function takes anomalib's torch model and x (N, 3, h, w), and returns a score (N,) and a map (N, 1, h, w) or None.
Notation: y -> patches (N, P, D); b -> rows of the memory bank (M, D).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Output = tuple[Tensor, Tensor | None]


def own_forward(network: Any, x: Tensor) -> Output:
    """Score and map of the model's own forward."""
    output = network(x)
    return output.pred_score, output.anomaly_map


def _nearest(y: Tensor, bank: Tensor, *, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Squared distances of each patch to its nearest row (N, P), and of the farthest patch to that row's neighbours (N, k).

    |b|² - 2 y·b finds the rows; their distances are computed from differences, which keeps all digits.
    """
    squares = (bank * bank).sum(dim=1)
    nearest = bank.index_select(0, (squares - 2 * y @ bank.T).argmin(dim=2).flatten()).reshape(y.shape)
    distance = (y - nearest).square().sum(dim=2)
    worst = distance.argmax(dim=1)[:, None, None].expand(-1, 1, y.shape[2])  # (N, 1, D)
    patch, row = y.gather(1, worst), nearest.gather(1, worst)[:, 0]
    num = min(num_neighbors, len(bank))
    support = (squares - 2 * row @ bank.T).topk(num, dim=1, largest=False).indices  # the row itself comes first
    neighbours = bank.index_select(0, support.flatten()).reshape(-1, num, y.shape[2])
    return distance, (patch - neighbours).square().sum(dim=2)


def patchcore(network: Any, x: Tensor) -> Output:
    """Distance of each patch to its nearest row; the score is the weighted maximum (K. Roth et al., PatchCore, eq. 7)."""
    levels = {layer: network.feature_pooler(level) for layer, level in network.feature_extractor(x).items()}
    grid = network.generate_embedding(levels)  # (N, D, h, w)
    squared, around = _nearest(
        grid.flatten(2).transpose(1, 2), network.memory_bank, num_neighbors=network.num_neighbors
    )
    distance = squared.sqrt()
    anomaly_map = network.anomaly_map_generator(distance.reshape(-1, 1, *grid.shape[2:]), x.shape[2:])
    score = distance.amax(dim=1)
    if network.num_neighbors > 1:
        score = score * (1 - functional.softmax(around.sqrt(), dim=1)[:, 0])
    return score, anomaly_map


def mh_patchcore(network: Any, x: Tensor) -> Output:
    """Squared Mahalanobis distance of each patch to its nearest row; the score is the weighted maximum."""
    levels = network.feature_extractor(x)
    height, width = levels[network.layers[0]].shape[2:]
    y = network.covariance(network.pca(network.generate_embedding(levels))).reshape(x.shape[0], height * width, -1)
    distance, around = _nearest(y.float(), network.memory_bank.bank.float(), num_neighbors=network.num_neighbors)
    anomaly_map = network.anomaly_map_generator(distance.reshape(-1, 1, height, width), x.shape[2:])
    score = distance.amax(dim=1)
    if around.shape[1] > 1:
        score = score * (1 - torch.exp(score - torch.logsumexp(around, dim=1))).clamp(0, 1)
    return score, anomaly_map


def cflow(network: Any, x: Tensor) -> Output:
    """Maximum over the image, minus the sum over levels of each pixel's likelihood relative to the image's highest."""
    from anomalib.models.image.cflow.utils import get_logp, positional_encoding_2d

    levels = network.encoder(x)
    total = torch.zeros((), device=x.device)
    for layer, decoder in zip(network.pool_layers, network.decoders, strict=True):
        y = levels[layer]
        num, channels, height, width = y.shape
        place = positional_encoding_2d(network.condition_vector, height, width).to(x.device)
        condition = place.permute(1, 2, 0)[None].expand(num, -1, -1, -1).reshape(-1, network.condition_vector)
        z, log_det = decoder(y.permute(0, 2, 3, 1).reshape(-1, channels), [condition])
        log_p = (get_logp(channels, z, log_det) / channels).reshape(num, 1, height, width)
        p = torch.exp(log_p - log_p.amax(dim=(2, 3), keepdim=True))
        total = total + functional.interpolate(p, x.shape[2:], mode="bilinear", align_corners=True)
    anomaly_map = total.amax(dim=(2, 3), keepdim=True) - total
    return anomaly_map.amax(dim=(1, 2, 3)), anomaly_map


def dfkde(network: Any, x: Tensor) -> Output:
    """Negative log of the kernel density of the pooled features in nats."""
    classifier = network.classifier
    kernels = classifier.kde_model
    y = classifier.pca_model.transform(network.get_features(x).clone())
    y, _ = classifier.pre_process(y, classifier.max_length)
    y = y @ kernels.bw_transform
    squares = (y[:, None] - kernels.dataset[None]).square().sum(dim=2)  # (N, M)
    log_p = torch.logsumexp(-0.5 * squares, dim=1) + torch.log(kernels.norm / kernels.dataset.shape[0])
    return -log_p, None


INFERENCE: dict[str, Callable[[Any, Tensor], Output]] = {
    "Patchcore": patchcore,
    "MHPatchcore": mh_patchcore,
    "Cflow": cflow,
    "Dfkde": dfkde,
}
"""Class name of anomalib -> its inference here; other classes use their own forward"""
WITHOUT_MAP = ("Dfkde", "Ganomaly")
"""Class names of anomalib without a map; Dfm has none with the score type nll"""
NOT_EXPORTED = {
    "Rad": "it loops over the images of a batch in Python, so its graph would support only one batch size",
}
"""Class name of anomalib -> known reason why its graph violates the contract"""
