"""A race from end to end: shared fits, fusion, failures and few images."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from anomaly.data.folders import Sample, find_category
from anomaly.detectors.memory_bank import MemoryBank
from anomaly.errors import DataError
from anomaly.training import race_images
from anomaly.training.candidates import Candidate, Entrants
from anomaly.training.race import Choice, fuse, run_race
from anomaly.training.race_bank import BankChoice, distances_of, score_choice
from anomaly.training.race_ranking import Measured
from anomaly.training.race_record import race_of
from anomaly.training.training_job import ImageReader, TrainingJob
from tests.training import tiny_race
from tests.training.quick_training import MAX_PIXELS, write_parts

JOB = TrainingJob(name="auto", options={}, images=ImageReader(white=255, max_pixels=MAX_PIXELS, cache_gib=0.1), seed=0)


@pytest.fixture(autouse=True)
def few_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_images, "NUM_DRAWN", 16)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    return find_category(write_parts(tmp_path_factory.mktemp("race") / "parts", 20)).train


def race(samples: tuple[Sample, ...], entrants: Entrants, **options: float) -> Choice:
    return run_race(samples, {s.path: s.path.name for s in samples}, job=JOB, entrants=entrants, **options)


def test_candidates_and_their_fusion_race(samples: tuple[Sample, ...]) -> None:
    choice = race(samples, tiny_race.entrants())
    found = choice.race
    names = [row.candidate for row in found.rows]
    assert names[:3] == ["memory bank", "memory bank, maximum", "principal components"]
    assert names[3].startswith("fusion of ")
    assert found.winner in names
    assert (found.num_train, found.num_held_out) == (14, 6)
    assert 0 < found.num_drawn <= 16
    assert race_of(json.loads(json.dumps(asdict(found)))) == found
    text = "\n".join(found.lines())
    assert all(name in text for name in names)
    assert f"chosen: {found.winner}: {found.reason}" in text


def test_a_fusion_never_becomes_a_member_of_a_fusion(samples: tuple[Sample, ...]) -> None:
    members = [{"detector": "memory_bank", "options": tiny_race.BANK | {"seed": seed}} for seed in (0, 1)]
    two = Candidate("two banks", "fusion", {"members": members}, "kept", "two banks")
    found = race(samples, Entrants((*tiny_race.entrants().candidates[1:], two), ())).race
    assert [row.candidate for row in found.rows][:3] == ["memory bank, maximum", "principal components", "two banks"]
    fusions = [row.candidate for row in found.rows if row.candidate.startswith("fusion of ")]
    assert len(fusions) == 1
    assert "two banks" not in fusions[0]


def test_the_race_is_repeatable(samples: tuple[Sample, ...]) -> None:
    first, second = (race(samples, tiny_race.entrants()).race for _ in range(2))
    assert [row.auroc for row in first.rows] == [row.auroc for row in second.rows]
    assert first.winner == second.winner


def test_a_shared_bank_scores_like_a_bank_of_its_own(samples: tuple[Sample, ...]) -> None:
    job = replace(JOB, name="memory_bank", options=tiny_race.BANK | {"position_scale": True})
    shared = job.fit(samples)
    own = replace(job, options=job.options | {"pooling": "maximum", "position_scale": False}).fit(samples)
    assert isinstance(shared, MemoryBank)
    expected = job.scores(own, samples[:3])
    for n, sample in enumerate(samples[:3]):
        x = shared.preprocess(torch.from_numpy(JOB.images.read(sample)[None]))
        features = [embedding.features(x) for embedding in shared.embeddings]  # type: ignore[operator,union-attr]
        score, peak = score_choice(shared, distances_of(shared, features), BankChoice(1, False, "maximum"))
        assert score == pytest.approx(expected.score[n], rel=1e-4)
        assert peak == pytest.approx(expected.peak[n], rel=1e-4)


def test_a_failed_candidate_is_left_out(samples: tuple[Sample, ...]) -> None:
    broken = Candidate("broken", "frozen_features", tiny_race.NEIGHBOUR | {"num_patches": 4}, "kept", "other")
    found = race(samples, Entrants((*tiny_race.entrants().candidates[:1], broken), ())).race
    assert [out.candidate for out in found.left_out] == ["broken"]
    assert found.left_out[0].reason.startswith("it failed:")
    assert found.winner == "memory bank"
    with pytest.raises(DataError, match="no candidate can be trained on these 20 images: broken"):
        race(samples, Entrants((broken,), ()))


def test_few_images_take_the_default_without_a_race(samples: tuple[Sample, ...]) -> None:
    choice = race(samples[:6], tiny_race.entrants())
    assert choice.race.winner == "memory bank"
    assert choice.race.rows == ()
    assert "6 good images of 6 parts are too few for a race of 10" in choice.race.reason
    assert choice.detector == "memory_bank"
    assert choice.race.lines()[0] == "no race"


def test_a_fusion_adds_standardised_scores() -> None:
    good = np.array([0.0, 1.0, 2.0])
    one = Measured(good, good, np.array([5.0, 0.0]), 2.0, 0.0)
    other = Measured(10 * good, 10 * good, np.array([50.0, 0.0]), 3.0, 0.0)
    fused = fuse([one, other])
    assert fused.milliseconds == 5.0
    np.testing.assert_allclose(fused.drawn, 2 * (one.drawn - 1) / 0.9)
