"""Dirty folders: real defects planted among the good training images, named by the ranking of `anomaly fit`.

    ANOMALY_DATA=DATA python -m benchmarks.dirty_folders --out benchmarks/results/dirty_folders.json

The defects come from the test folders, so the figures carry the stamp `planted test defects`. The rule was designed on
bottle and screw; capsule and commutator only confirm it. Features are computed once per image and kept in --cache.

    found            share of the planted defects that are named
    fdr              share of good images among the named ones
    rank_auroc       AUROC of the ranking, planted defects against good images
    first_quarter    share of the planted defects among the first quarter of the ranking
    auroc            image AUROC of a memory bank on the test images that were not planted
      clean            fitted on the good images
      dirty            fitted on good images and planted defects
      named            fitted without the named images
      reviewed         fitted without the defects in the first quarter of the ranking, as a user would confirm them

A second run with the same --out adds its sets.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from anomaly.data.folders import find_category
from anomaly.detectors.memory_bank import MemoryBank, proportional_size
from anomaly.detectors.mutual_distances import Patches, mutual_distances
from anomaly.imaging.image_file import read_image
from anomaly.metrics.image_level import auroc
from anomaly.system.files import atomic_write
from anomaly.system.run_card import RunCard
from anomaly.training.suspects import rank_mutually

DESIGNED = ("mvtec_ad/bottle", "mvtec_ad/screw")
CONFIRMED = ("mvtec_ad/capsule", "kolektorsdd/commutator")
CONTAMINATIONS = (0.0, 0.05, 0.1, 0.2, 0.4)
FITTED_AT = 0.2
"""Contamination at which detectors are fitted"""
BANK: dict[str, Any] = {"bank_size": 1000, "num_candidates": 16_000, "num_projected": 16_000}
"""Smaller than the default bank, for time"""


class FolderFeatures:
    """Features of all images of a category: those of the memory bank (h, w, C), and half as fine ones for the ranking."""

    def __init__(self, root: Path, cache: Path | None) -> None:
        category = find_category(root)
        self.samples = [*category.train, *category.test]
        self.num_train = len(category.train)
        self.defective = np.array([s.label for s in self.samples])
        first = read_image(self.samples[0].path, white=255, max_pixels=10**8)
        self.size = proportional_size(*first.shape[:2])
        file = None if cache is None else cache / f"{root.parent.name}_{root.name}.npy"
        if file is not None and file.is_file():
            self.fine = torch.from_numpy(np.load(file))
        else:
            self.fine = self._compute()
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(file) as partial, partial.open("wb") as opened:
                    np.save(opened, self.fine.numpy())
        self._height, self._width = first.shape[:2]

    @torch.no_grad()
    def _compute(self) -> Tensor:
        bank = MemoryBank(size=self.size).eval()
        embedding: Any = bank.embeddings[0]
        found = []
        for sample in self.samples:
            image = read_image(sample.path, white=255, max_pixels=10**8)
            found.append(embedding.features(bank.preprocess(torch.from_numpy(image[None])))[0].half())
        return torch.stack(found)

    def rank(self, members: NDArray[np.intp], *, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """Rank images as in `fit`: which ones are named, and the order of suspicion."""
        patches = Patches(self._height, self._width)

        def features(n: int) -> Tensor:
            fine = self.fine[int(members[n])].float().permute(2, 0, 1)[None]
            return functional.avg_pool2d(fine, 2)[0].flatten(1).T

        test, _ = rank_mutually(mutual_distances(patches, features, range(len(members)), seed=seed))
        return test.suspicious, np.argsort(test.p, kind="stable")

    @torch.no_grad()
    def auroc(self, train: NDArray[np.intp], tested: NDArray[np.intp], *, seed: int) -> float:
        """Image AUROC of a memory bank that is fitted on some images and tested on others."""
        bank = MemoryBank(size=self.size, seed=seed, **BANK).eval()
        bank.fit_bank(0, lambda: ((str(self.samples[n].path), self.fine[int(n)].float()) for n in train))
        embedding: Any = bank.embeddings[0]
        scores = [
            float(bank.score_embeddings([embedding.project(self.fine[int(n)].float())[None]], size=self.size).score[0])
            for n in tested
        ]
        return auroc(np.array(scores), self.defective[tested])


def plant(features: FolderFeatures, share: float, *, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Draw good training images and planted defects at a contamination; good images are dropped where defects are few."""
    rng = np.random.default_rng(seed)
    good, defects = np.arange(features.num_train), np.flatnonzero(features.defective)
    num = min(len(defects), round(share * len(good) / (1 - share)))
    if num == len(defects):
        good = np.sort(rng.permutation(good)[: round(num * (1 - share) / share)])
    return good, np.sort(rng.permutation(defects)[:num])


def measure(features: FolderFeatures, share: float, *, seed: int, fitted: bool) -> dict[str, Any]:
    """Plant defects, rank, and optionally fit memory banks."""
    good, planted = plant(features, share, seed=seed)
    members = np.concatenate([good, planted])
    bad = np.arange(len(members)) >= len(good)
    named, order = features.rank(members, seed=seed)
    quarter = order[: len(members) // 4]
    row: dict[str, Any] = {
        "contamination": share,
        "seed": seed,
        "num_good": len(good),
        "num_planted": len(planted),
        "num_named": int(named.sum()),
        "named_share": float(named.mean()),
    }
    if len(planted):
        rank = np.empty(len(order))
        rank[order] = -np.arange(len(order))
        row |= {
            "found": float(named[bad].mean()),
            "fdr": float((named & ~bad).sum() / max(1, named.sum())),
            "rank_auroc": auroc(rank, bad),
            "first_quarter": float(bad[quarter].sum() / bad.sum()),
        }
    tested = np.setdiff1d(np.arange(features.num_train, len(features.samples)), planted)
    if fitted and features.defective[tested].any():
        reviewed = np.ones(len(members), dtype=bool)
        reviewed[quarter[bad[quarter]]] = False
        row["auroc"] = {
            name: features.auroc(train, tested, seed=seed)
            for name, train in (
                ("clean", good), ("dirty", members), ("named", members[~named]), ("reviewed", members[reviewed])
            )
        }  # fmt: skip
    return row


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average the rows of equal set and contamination."""
    table = []
    for key in sorted({(row["set"], row["contamination"]) for row in rows}):
        members = [row for row in rows if (row["set"], row["contamination"]) == key]
        line: dict[str, Any] = {
            "set": key[0],
            "role": members[0]["role"],
            "contamination": key[1],
            "seeds": len(members),
        }
        for name in ("named_share", "found", "fdr", "rank_auroc", "first_quarter"):
            values = [row[name] for row in members if name in row]
            if values:
                line[name] = round(float(np.mean(values)), 4)
        fits = [row["auroc"] for row in members if "auroc" in row]
        if fits:
            line["auroc"] = {name: round(float(np.mean([fit[name] for fit in fits])), 4) for name in fits[0]}
        table.append(line)
    return table


def main() -> None:
    """Run the benchmark and write its run card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=[*DESIGNED, *CONFIRMED])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fitted-seeds", type=int, default=1)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    card = RunCard("dirty_folders", config={"seeds": options.seeds, "bank": BANK})
    root = Path(os.environ["ANOMALY_DATA"])
    rows: list[dict[str, Any]] = []
    if options.out.is_file():
        earlier = json.loads(options.out.read_text(encoding="utf-8"))["result"]["rows"]
        rows = [row for row in earlier if row["set"] not in options.sets]
    for name in options.sets:
        features = FolderFeatures(root / name, options.cache)
        for share in CONTAMINATIONS:
            for seed in range(options.seeds if share else 1):
                fitted = share == FITTED_AT and seed < options.fitted_seeds
                row = measure(features, share, seed=seed, fitted=fitted)
                rows.append({"set": name, "role": "design" if name in DESIGNED else "confirm"} | row)
                print(rows[-1], flush=True)
                card.facts["result"] = {"stamp": "planted test defects", "rows": rows, "table": summarize(rows)}
                card.write(options.out)


if __name__ == "__main__":
    main()
