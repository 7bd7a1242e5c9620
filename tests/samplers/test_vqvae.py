"""VQ-VAE: codes, codebook, gradients and phases by hand, the prior over grids, and samples."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from anomaly.errors import UsageError
from anomaly.generation.base import Options
from anomaly.samplers._codebook import Codebook
from anomaly.samplers.vqvae import VqVae
from anomaly.testing.toy_training import as_batch, draw_parts, region_of_interest

pytestmark = pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning")
TINY: dict[str, Any] = {
    "size": 32, "grid": 8, "num_codes": 16, "dimensions": 8, "width": 16, "prior_width": 12, "prior_layers": 2,
    "epochs": 8, "prior_epochs": 4, "batch_size": 4, "free_share": 0.0, "smooth": 3, "learning_rate": 5e-3,
}  # fmt: skip
ALIKE = Options()


def build(**options: Any) -> VqVae:
    """Build an untrained sampler whose codebook vectors are all near some cell."""
    torch.manual_seed(0)
    sampler = VqVae(**(TINY | options))
    with torch.no_grad():  # encoder outputs of some images
        cells = sampler._encoder_output(torch.rand(4, 3, sampler.preprocess.size[0], sampler.preprocess.size[1]) ** 2)
        cells = cells.permute(0, 2, 3, 1).flatten(0, 2)
        sampler.codebook.vectors.copy_(cells[torch.randperm(len(cells))[: sampler.num_codes]])
    return sampler.eval()


def fit(sampler: VqVae, image: Tensor, *, callback: Any = (), checkpoint: Path | None = None) -> None:
    """Train on the CPU with the images in the given order."""
    batches = [as_batch(b, name=f"{n}/") for n, b in enumerate(image.split(sampler.batch_size))]  # type: ignore[no-untyped-call]
    trainer = pl.Trainer(
        max_epochs=sampler.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callback),
    )  # fmt: skip
    trainer.fit(sampler, DataLoader(batches, batch_size=None), ckpt_path=checkpoint, weights_only=True)
    sampler.eval()


class Record(pl.Callback):
    """Records the state after each step."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.states.append(copy.deepcopy(pl_module.state_dict()))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.states.append(copy.deepcopy(pl_module.state_dict()))


@torch.no_grad()
def test_code_is_the_nearest_vector() -> None:
    sampler = build()
    x = torch.rand(3, 3, 32, 32)
    u = sampler._encoder_output(x).permute(0, 2, 3, 1)
    expected = torch.cdist(u.flatten(0, 2), sampler.codebook.vectors).argmin(dim=1).view(3, 8, 8)
    codes = sampler.encode(x)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, expected)
    assert len(codes.unique()) > 2
    q = sampler.codebook.look_up(codes)
    assert torch.equal(q[1, :, 2, 3], sampler.codebook.vectors[codes[1, 2, 3]])
    assert torch.equal(sampler.decode(codes), torch.sigmoid(sampler.decoder(q)))


def test_loss_and_gradients_equal_the_paper() -> None:
    sampler = build(
        commitment=0.5, free_share=0.0, epochs=4, prior_epochs=2, decay=1.0, min_use=-1.0
    )  # the codebook stays fixed
    sampler.codebook.use.fill_(1.0)
    sampler.codebook.total.copy_(sampler.codebook.vectors)
    sampler.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    sampler._num_first = lambda: 10  # type: ignore[method-assign]
    image = draw_parts(2, seed=0)
    sampler.training_step(as_batch(image, name=""), 0).backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in sampler.named_parameters()}
    assert "codebook.vectors" not in gradients  # updated by moving averages
    sampler.zero_grad()

    x = sampler.preprocess(image)
    u = sampler._encoder_output(x)
    q = sampler.codebook.look_up(sampler.encode(x)).detach().requires_grad_()
    error = ((torch.sigmoid(sampler.decoder(q)) - x) ** 2).mean() / x.var()
    (of_decoder,) = torch.autograd.grad(error, q, retain_graph=True)
    error.backward()
    of_commitment = 0.5 * 2 * (u - q).detach() / u.numel()
    u.backward(of_decoder + of_commitment)  # straight through: the decoder's gradient is the encoder's
    for name, p in sampler.named_parameters():
        if name.startswith(("encoder.", "decoder.")):
            assert p.grad is not None
            assert torch.allclose(gradients[name], p.grad, atol=1e-6, rtol=1e-4), name
        else:
            assert gradients[name] is None


def test_codebook_follows_the_moving_averages_of_its_cells() -> None:
    book = Codebook(num_codes=3, dimensions=2, decay=0.9, min_use=0.01)
    generator = torch.Generator().manual_seed(0)
    u = torch.tensor([[0.0, 0.1], [1.0, 1.1], [0.9, 1.0], [0.2, 0.0]]).T.reshape(1, 2, 2, 2)
    book.vectors.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]]))
    book.use.fill_(1.0)
    book.total.copy_(book.vectors)
    book.follow(u, generator=generator)
    # two cells for each of the first two vectors, none for the third: 2 of 4 cells are 1.5 times even use of 3
    assert torch.allclose(book.use, torch.tensor([1.05, 1.05, 0.9]))
    expected = (0.9 * torch.tensor([1.0, 1.0]) + 0.1 * 0.75 * torch.tensor([1.9, 2.1])) / 1.05
    assert torch.allclose(book.vectors[1], expected)
    assert torch.allclose(book.vectors[2], torch.tensor([9.0, 9.0]))
    for _ in range(60):
        book.follow(u, generator=generator)  # 0.9^44 < 0.01
    assert book.vectors[2].max() < 1.2  # restarted at one of the cells
    assert book.vectors.isfinite().all()


def test_each_phase_trains_only_its_own_networks_and_a_fit_resumes_in_both(tmp_path: Path) -> None:
    image, record = draw_parts(12, seed=0), Record()

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    options = {"epochs": 5, "prior_epochs": 2}
    torch.manual_seed(0)
    whole = VqVae(**(TINY | options))
    fit(whole, image, callback=[record, Keep()])
    assert len(record.states) == 16
    for step in range(15):
        before, after = record.states[step : step + 2]
        moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
        moved -= {"perplexity", "scale"}  # measured at the end
        assert moved == ({"encoder", "decoder", "codebook"} if step < 9 else {"embed", "prior"}), step
    for epoch in (1, 3):
        torch.manual_seed(77)
        resumed = VqVae(**(TINY | options))
        fit(resumed, image, checkpoint=tmp_path / f"{epoch}.ckpt")
        assert all(torch.equal(value, whole.state_dict()[key]) for key, value in resumed.state_dict().items())


@pytest.mark.slow
def test_more_than_a_quarter_of_the_codebook_is_used_and_parts_are_reconstructed() -> None:
    torch.manual_seed(0)
    sampler = VqVae(**(TINY | {"epochs": 24, "prior_epochs": 10, "free_share": 0.2}))
    image = draw_parts(24, seed=0)
    fit(sampler, image)
    with torch.no_grad():
        x = sampler.preprocess(image)
        codes = sampler.encode(x)
        share = torch.bincount(codes.flatten(), minlength=16) / codes.numel()
        assert sampler.perplexity.item() == pytest.approx(torch.special.entr(share).sum().exp().item(), rel=1e-4)
        assert sampler.perplexity > 16 / 4
        other = sampler.preprocess(draw_parts(8, seed=1))
        error = ((sampler.decode(sampler.encode(other)) - other) ** 2).mean()
        assert error < 0.15 * other.var()
        assert functional.cross_entropy(sampler.prior_logits(codes), codes).exp() < 0.95 * sampler.perplexity


def tiny_prior() -> tuple[VqVae, Tensor, Tensor]:
    """A prior over grids of 2×2 codes with 3 values, all 81 grids, and their probabilities."""
    sampler = build(size=4, grid=2, num_codes=3)
    for parameter in (*sampler.prior.parameters(), *sampler.embed.parameters()):
        nn.init.normal_(parameter, std=0.5)
    grids = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    with torch.no_grad():
        log_p = torch.log_softmax(sampler.prior_logits(grids).double(), dim=1)
    return sampler, grids, log_p.gather(1, grids[:, None]).sum(dim=(1, 2, 3)).exp()


def test_prior_is_a_distribution_over_grids_and_samples_match_it() -> None:
    sampler, grids, p = tiny_prior()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    sampler.decode = lambda codes: codes[:, None].expand(-1, 3, -1, -1) / 4.0  # type: ignore[method-assign,assignment]
    drawn = sampler.sampling_loop().sample(20_000, rng=np.random.default_rng(0), options=ALIKE)
    place = (drawn[:, 0].reshape(-1, 4) * 4).round().astype(int) @ np.array([27, 9, 3, 1])
    frequency = np.bincount(place, minlength=81) / len(drawn)
    assert np.abs(frequency - p.numpy()).max() < 5 * np.sqrt(p.max().item() / 20_000)
    assert 0.5 * np.abs(frequency - p.numpy()).sum() < 0.04
    assert p.max() > 3 / 81
    assert torch.equal(grids[40], torch.ones(2, 2, dtype=torch.int64))


def test_sampling_loop_draws_codes_and_keeps_known_pixels() -> None:
    sampler = build()
    loop = sampler.sampling_loop()
    x = torch.rand(2, 3, 32, 32).numpy()

    def draw(seed: int) -> Any:
        return loop.sample(2, rng=np.random.default_rng(seed), options=ALIKE)

    assert draw(0).shape == (2, 3, 32, 32)
    assert np.array_equal(draw(0), draw(0))
    assert not np.array_equal(draw(0), draw(1))
    with torch.no_grad():
        rebuilt = sampler.decode(sampler.encode(torch.from_numpy(x))).numpy()
    assert np.array_equal(loop.reconstruct(x, rng=np.random.default_rng(0), options=ALIKE), rebuilt)

    mask = np.zeros((2, 32, 32), dtype=np.bool_)
    mask[0, 9:15, 20:22] = True
    given = loop.inpaint(x, mask, rng=np.random.default_rng(0), options=ALIKE)
    known = np.broadcast_to(~mask[:, None], x.shape)
    assert np.array_equal(given[known], x[known])
    assert not np.array_equal(given[~known], x[~known])
    other = np.where(known, x, 0.9).astype(np.float32)
    again = loop.inpaint(other, mask, rng=np.random.default_rng(0), options=ALIKE)
    assert np.array_equal(again, given)  # the masked content has no influence

    seen = []

    def run_function(function: str, *inputs: Any) -> Any:
        seen.append((function, inputs[0].copy()))
        return sampler.run_function(function, *inputs)

    loop.run_function = run_function  # type: ignore[assignment]
    loop.inpaint(x, mask, rng=np.random.default_rng(0), options=ALIKE)
    assert [function for function, _ in seen] == ["encode", "prior_logits", "prior_logits", "decode"]
    first, last = seen[1][1], seen[3][1]
    cells = np.argwhere(first != last).tolist()
    assert all(cell in ([0, 2, 5], [0, 3, 5]) for cell in cells)
    assert cells


@torch.no_grad()
def test_map_is_the_reconstruction_error_and_continuous_at_ties() -> None:
    sampler = build(measure="l2", prior_weight=0.0)
    sampler.codebook.usual.fill_(1e-5)
    x = torch.rand(2, 3, 32, 32)
    x_hat = sampler.decode(sampler.encode(x))
    assert torch.allclose(sampler.anomaly_map(x), ((x - x_hat) ** 2).mean(dim=1), atol=1e-5)
    book = Codebook(num_codes=3, dimensions=2, decay=0.9, min_use=0.01)
    book.vectors.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]]))
    shares = [book.shares(torch.tensor([0.5 + off, 0.0]).view(1, 2, 1, 1))[0, :, 0, 0] for off in (-1e-6, 1e-6, 0.4)]
    assert torch.allclose(shares[0], torch.tensor([0.5, 0.5, 0.0]), atol=1e-3)
    assert torch.allclose(shares[0], shares[1], atol=1e-3)
    assert shares[2][1] > 0.99


@torch.no_grad()
def test_prior_adds_the_nats_of_the_codes() -> None:
    sampler, other = build(prior_weight=0.5), build(prior_weight=0.0)
    x = torch.full((1, 3, 32, 32), 0.5)
    for one in (sampler, other):
        one.codebook.usual.fill_(1e-6)
    codes = sampler.encode(x)
    log_p = torch.log_softmax(sampler.prior_logits(codes), dim=1).gather(1, codes[:, None])
    added = sampler.anomaly_map(x) - other.anomaly_map(x)
    expected = -0.5 * functional.interpolate(log_p, (32, 32), mode="bilinear")[:, 0]
    assert torch.allclose(added, expected, atol=1e-3)


@torch.no_grad()
def test_images_are_black_outside_the_region_of_interest() -> None:
    sampler = build()
    sampler.preprocess.set_roi(region_of_interest())
    drawn = sampler.sampling_loop().sample(2, rng=np.random.default_rng(0), options=ALIKE)
    assert (drawn[:, :, ~sampler.preprocess.roi.numpy()] == 0).all()
    assert (drawn[:, :, sampler.preprocess.roi.numpy()] > 0).all()


@pytest.mark.parametrize(
    ("ability", "reason"), [("log_prob", "noise"), ("interpolate", "between"), ("attribute", "added")]
)
def test_unsupported_abilities_have_a_reason(ability: str, reason: str) -> None:
    assert not VqVae.supports(ability)
    assert reason in VqVae.unsupported[ability]


@pytest.mark.parametrize(
    ("option", "value"),
    [("grid", 7), ("grid", 0), ("grid", 64), ("grid", -4), ("prior_epochs", 0), ("prior_epochs", 80), ("smooth", 4)],
)
def test_invalid_options_are_refused(option: str, value: int) -> None:
    with pytest.raises(UsageError, match=rf"{option} {value}: .*e\.g\. "):
        VqVae(**{"size": 64, "epochs": 80, option: value})
