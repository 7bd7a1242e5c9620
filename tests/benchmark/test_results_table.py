"""The table of results: means, bold, claims, leaks, failures, published rows and provenance."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from anomaly.benchmark.published import MVTEC_AD, PUBLISHED
from anomaly.benchmark.table import SET_CATEGORIES, write_results
from anomaly.errors import DataError, OutputError

PIPED = SET_CATEGORIES["piped_paper"]


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "interval": [value - 0.02, min(value + 0.02, 1.0)]}


def cell(**changed: Any) -> dict[str, Any]:
    """An invented cell; `image`, `pixel` and `aupro` are its figures."""
    image, pixel = changed.pop("image", 0.9), changed.pop("pixel", 0.95)
    figures = {
        "image": {"auroc": estimate(image)},
        "pixel": {"auroc": estimate(pixel), "aupro": {"0.3": estimate(changed.pop("aupro", 0.8))}},
        "false_alarms": {"num_hits": 1, "num_trials": 20},
        "misses": {"num_hits": 3, "num_trials": 63},
    }
    return {
        "kind": "benchmark cell", "benchmark": "made up", "set": "mvtec_ad", "category": "bottle", "name": "fastflow",
        "role": "ours", "detector": "fastflow", "seed": 0, "config": {"epochs": 8}, "schedule": "reduced",
        "schedule_note": "8 of 500 epochs", "precision": "bf16", "status": "ok", "message": "",
        "versions": {"torch": "2.15.0"}, "hardware": {"processor": "some", "num_cpus": 2}, "commit": "abc",
        "date": "2026-01-02T03:04:05+00:00", "seconds": {"fit": 68.4},
        "seconds_per_image": {"batch_1": 0.05, "batch_16": 0.04, "threads": 2},
        "counts": {"train": 167, "calibration_images": 42, "stopping": 0, "test_good": 20, "test_defect": 63},
        "figures": figures,
        "parity": {"score": {"max": 1e-6}, "map": {"max": 2e-6}, "num_flips": 0, "provider": "CPUExecutionProvider"},
        "leaks": [], "num_checks": 14,
    } | changed  # fmt: skip


FULL = {"schedule": "full", "schedule_note": ""}
LIT = {
    "brightness": {"defect_above_good": 0.02, "test_above_train": 0.9},
    "colour": {"defect_above_good": 0.6, "test_above_train": 0.5},
}
LEAK = {"severity": "leak", "name": "training images in test", "description": "", "num": 4, "paths": []}
FAILED_KEYS = ("config", "seconds", "seconds_per_image", "counts", "figures", "parity", "leaks", "num_checks")


def failed(**changed: Any) -> dict[str, Any]:
    failed = cell(status="failed", message="out of memory\nat a|b", **changed)
    return {key: value for key, value in failed.items() if key not in FAILED_KEYS}


def written(tmp_path: Path, *cells: dict[str, Any]) -> str:
    for number, one in enumerate(cells):
        path = tmp_path / "cells" / one["set"] / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(one), encoding="utf-8")
    out = tmp_path / "RESULTS.md"
    write_results(tmp_path / "cells", out)
    return out.read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    parts = re.split(r"^#+ ", text, flags=re.MULTILINE)
    [found] = [part for part in parts if part.split("\n")[0] == title]
    return found


def table(text: str, title: str) -> list[dict[str, str]]:
    """The rows of a section's table by column; the first column, without a head, is the role."""
    lines = [line for line in section(text, title).splitlines() if line.startswith("|")]
    head, _, *rows = [[one.strip() for one in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert all(len(row) == len(head) for row in rows)
    return [dict(zip(head, row, strict=True)) for row in rows]


def row(text: str, title: str, name: str) -> dict[str, str]:
    [found] = [one for one in table(text, title) if one["row"].startswith(name)]
    return found


def test_seeds_are_averaged_and_spread_is_shown(tmp_path: Path) -> None:
    found = row(
        written(tmp_path, *[cell(seed=n, image=v) for n, v in enumerate((0.9, 0.95, 0.97))]),
        "mvtec_ad / bottle",
        "fastflow",
    )
    assert found["image AUROC"] == "94.0 (90.0–97.0)"
    assert found["seeds"] == "3 seeds"
    assert found["schedule"] == "reduced: 8 of 500 epochs; bf16"
    assert found["false alarms"] == "5.0 (1, 1, 1 of 20)"
    assert found["misses"] == "4.8 (3, 3, 3 of 63)"
    assert (found["fit, s"], found["ms per image, batch 1"], found["ms per image, batch 16"]) == ("68", "50.0", "40.0")
    assert (found["parity"], found["leaks"]) == ("2.0e-06", "no leak found (14 checks)")


def test_rates_at_other_alphas_are_averaged_and_absent_ones_are_dashes(tmp_path: Path) -> None:
    rates = {
        alpha: {
            "false_alarms": {"num_hits": hits, "num_trials": 20},
            "misses": {"num_hits": 20 - hits, "num_trials": 40},
        }
        for alpha, hits in (("0.02", 1), ("0.05", 3))
    }
    cells = [cell(seed=n) for n in range(2)]
    for one in cells:
        one["figures"]["rates"] = rates
    text = written(tmp_path, *cells, cell(name="old", seed=0))
    found = row(text, "mvtec_ad / bottle", "fastflow")
    assert found["false alarms at 1 / 2 / 5 %"] == "– / 5.0 / 15.0"
    assert found["misses at 1 / 2 / 5 %"] == "– / 47.5 / 42.5"
    old = row(text, "mvtec_ad / bottle", "old")
    assert (old["false alarms at 1 / 2 / 5 %"], old["misses at 1 / 2 / 5 %"]) == ("–", "–")
    assert old["misses"] == "4.8 (3 of 63)"


def test_shortcuts_of_a_test_set_are_above_its_table(tmp_path: Path) -> None:
    text = written(tmp_path, cell(), cell(seed=1, shortcuts=LIT), cell(category="screw"))
    [line] = [line for line in section(text, "mvtec_ad / bottle").splitlines() if line.startswith("- ")]
    assert "Brightness" in line
    assert "AUROC of 2.0" in line
    assert "without a detector" not in section(text, "mvtec_ad / screw")


def test_one_seed_shows_its_interval(tmp_path: Path) -> None:
    found = row(written(tmp_path, cell()), "mvtec_ad / bottle", "fastflow")
    assert found["image AUROC"] == "90.0 [88.0, 92.0]"
    assert (found["pixel AUROC"], found["AUPRO 30 %"]) == ("95.0 [93.0, 97.0]", "80.0 [78.0, 82.0]")


def test_parity_shows_the_worst_seed(tmp_path: Path) -> None:
    bad = {"score": {"max": 0.02}, "map": {"max": 1e-6}, "num_flips": 2, "refused": "differs"}
    text = written(tmp_path, cell(), cell(seed=1, parity=bad))
    assert row(text, "mvtec_ad / bottle", "fastflow")["parity"] == "2.0e-02, 2 flips, refused"


def test_missing_pixel_figures_times_and_parity_give_dashes(tmp_path: Path) -> None:
    bare = cell()
    bare["figures"]["pixel"] = {}
    del bare["seconds_per_image"], bare["parity"]
    found = row(written(tmp_path, bare), "mvtec_ad / bottle", "fastflow")
    assert {found[key] for key in ("pixel AUROC", "AUPRO 30 %", "ms per image, batch 1", "parity")} == {"–"}


def test_a_mean_needs_every_category_of_the_set(tmp_path: Path) -> None:
    values = [0.80, 0.84, 0.88, 0.92, 0.96, 1.0]
    cells = [cell(set="piped_paper", category=name, image=v) for name, v in zip(PIPED, values, strict=True)]
    title = "piped_paper: mean over all categories"
    found = row(written(tmp_path / "all", *cells), title, "fastflow")
    assert (found["image AUROC"], found["categories"]) == ("90.0", "6 of 6")
    found = row(written(tmp_path / "five", *cells[:5]), title, "fastflow")
    assert (found["image AUROC"], found["categories"]) == ("–", "5 of 6")
    without = [*cells[:5], failed(set="piped_paper", category=PIPED[5])]
    assert {one["image AUROC"] for one in table(written(tmp_path / "failed", *without), title)} == {"–"}
    other_recipe = [*cells[:5], {**cells[5], "config": {"epochs": 9}}]
    assert {one["image AUROC"] for one in table(written(tmp_path / "recipe", *other_recipe), title)} == {"–"}
    seed_failed = [*cells, failed(set="piped_paper", category=PIPED[5], seed=1)]
    assert row(written(tmp_path / "seed", *seed_failed), title, "fastflow")["image AUROC"] == "–"


def test_nothing_is_averaged_over_different_sets(tmp_path: Path) -> None:
    """Each set has the mean of its own categories; an unknown set has no mean."""
    cells = [cell(category=name, image=0.6) for name in MVTEC_AD]
    cells += [cell(set="piped_paper", category=name, image=0.8) for name in PIPED]
    cells += [cell(set="made_up", category="bottle", image=1.0)]
    text = written(tmp_path, *cells)
    means = {
        name: table(text, f"{name}: mean over all categories")[0] for name in ("mvtec_ad", "piped_paper", "made_up")
    }
    assert {name: one["image AUROC"] for name, one in means.items()} == {
        "mvtec_ad": "60.0",
        "piped_paper": "80.0",
        "made_up": "–",
    }
    part = table(written(tmp_path / "part", *cells[:14]), "mvtec_ad: mean over all categories")[0]
    assert (part["image AUROC"], part["categories"]) == ("–", "14 of 15")


def test_published_rows_are_last_with_source_and_caveats(tmp_path: Path) -> None:
    text = written(tmp_path, cell(role="baseline", name="padim", detector="padim"), cell())
    rows = table(text, "mvtec_ad / bottle")
    assert [one[""] for one in rows] == ["ours", "baseline", *["published"] * len(PUBLISHED)]
    found = row(text, "mvtec_ad / bottle", "FastFlow R18, anomalib")
    number = re.search(r"\((P\d+)\)", found["row"])
    assert number is not None
    assert (found["image AUROC"], found["pixel AUROC"], found["AUPRO 30 %"]) == ("100.0", "98.3", "–")
    notes = section(text, "Published rows: sources and caveats")
    assert f"- {number[1]}: FastFlow R18, anomalib. anomalib, README of the model" in notes
    assert "**early stopping on the AUROC of the test images, patience 3.**" in notes
    assert all(f"{caveat}." in notes for one in PUBLISHED for caveat in one.caveats)


def test_a_reduced_row_claims_nothing(tmp_path: Path) -> None:
    text = written(tmp_path, cell(image=1.0, pixel=0.99))
    assert not re.search(r"above by|below by|equal \|", text)
    assert "\n### mvtec_ad: full schedules" not in text
    found = table(text, "mvtec_ad: reduced schedules, difference from published figures (no claim)")
    [line] = [one for one in found if one["by"].startswith("FastFlow R18, anomalib") and one["figure"] == "pixel AUROC"]
    assert (line["here"], line["published"], line["difference"]) == ("99.0", "98.3", "+0.7")
    assert line["row"].startswith("fastflow, reduced: 8 of 500 epochs")
    assert {one["by"].split(" ")[0] for one in found} == {"FastFlow"}, "compared only with its own method"


@pytest.mark.parametrize(
    ("pixel", "claim", "within"),
    [(0.983, "equal", "yes"), (0.97, "below by 1.3", "yes"), (0.95, "below by 3.3", "no"), (0.99, "above by 0.7", "yes")],
)  # fmt: skip
def test_a_full_row_claims_against_its_method(tmp_path: Path, pixel: float, claim: str, within: str) -> None:
    text = written(tmp_path, cell(**FULL, pixel=pixel))
    assert "reduced schedules, difference" not in text
    found = table(text, "mvtec_ad: full schedules against published figures")
    [line] = [one for one in found if one["by"].startswith("FastFlow R18, anomalib") and one["figure"] == "pixel AUROC"]
    assert (line["claim"], line["published within our 95 % interval"]) == (claim, within)


def test_a_leak_or_a_failed_seed_removes_the_claim_and_the_rank(tmp_path: Path) -> None:
    other = cell(**FULL, role="baseline", name="padim", detector="padim", image=0.8)
    title = "mvtec_ad: full schedules against published figures"
    text = written(tmp_path / "leak", cell(**FULL, image=0.99, leaks=[LEAK]), other)
    claims = {one["claim"] for one in table(text, title) if one["row"].startswith("fastflow")}
    assert claims == {"none: a leak"}
    found = row(text, "mvtec_ad / bottle", "fastflow")
    assert found["leaks"] == "LEAK: training images in test (4 images)"
    assert "**" not in section(text, "mvtec_ad / bottle")
    text = written(tmp_path / "failed", cell(**FULL), failed(**FULL, seed=1))
    assert {one["claim"] for one in table(text, title)} == {"none: a seed failed"}


def test_a_leak_of_one_seed_is_shown_for_the_row(tmp_path: Path) -> None:
    note = {**LEAK, "severity": "note", "name": "near-duplicates in two roles"}
    cells = [cell(leaks=[note]), cell(seed=1, leaks=[LEAK]), cell(seed=2, leaks=[{**LEAK, "num": 9}])]
    assert row(written(tmp_path, *cells), "mvtec_ad / bottle", "fastflow")["leaks"] == (
        "LEAK: training images in test (9 images); note: near-duplicates in two roles (4 images)"
    )


def bold(text: str, column: str) -> set[str]:
    return {one["row"] for one in table(text, "mvtec_ad / bottle") if "**" in one[column]}


def test_bold_is_the_best_of_comparable_rows(tmp_path: Path) -> None:
    def named(name: str, **changed: Any) -> dict[str, Any]:
        return cell(name=name, detector=name, **changed)

    cells = [
        named("a", image=0.90),
        named("b", image=0.93, seconds={"fit": 10.0}),
        named("c", image=0.93, seconds={"fit": 5.0}, hardware={"processor": "other"}),
        named("leaky", image=0.99, leaks=[LEAK]),
        named("full", image=0.98, **FULL),
        named("other images", image=0.97, counts={"test_good": 19, "test_defect": 63}),
        named("two seeds", image=0.96),
        named("two seeds", image=0.96, seed=1),
    ]
    text = written(tmp_path, *cells)
    assert bold(text, "image AUROC") == {"b", "c"}
    assert bold(text, "fit, s") == {"b"}, "times of another machine are not compared"
    assert bold(text, "false alarms") == bold(text, "misses") == set()
    assert row(text, "mvtec_ad / bottle", "b")["image AUROC"] == "**93.0** [91.0, 95.0]"
    text = written(tmp_path / "one", cell())
    assert bold(text, "image AUROC") == set(), "a single row has no comparison"


def test_failed_cells_and_missing_seeds_are_visible(tmp_path: Path) -> None:
    cells = [cell(), cell(seed=1), failed(seed=2), failed(name="riad", detector="riad")]
    text = written(tmp_path, *cells, cell(name="padim", detector="padim", role="baseline"))
    found = row(text, "mvtec_ad / bottle", "fastflow")
    assert (found["seeds"], found["leaks"]) == ("2 of 3 seeds", "no leak found (14 checks); 1 failed")
    found = row(text, "mvtec_ad / bottle", "riad")
    assert (found["seeds"], found["image AUROC"], found["leaks"]) == ("0 of 3 seeds", "–", "1 failed")
    assert row(text, "mvtec_ad / bottle", "padim")["seeds"] == "1 of 3 seeds"
    assert "- fastflow, seed 2: out of memory at a\\|b" in section(text, "mvtec_ad / bottle")
    assert "- riad, seed 0: out of memory at a\\|b" in section(text, "mvtec_ad / bottle")


def test_cells_of_another_recipe_are_another_row(tmp_path: Path) -> None:
    text = written(tmp_path, cell(image=0.9), cell(image=0.8, seed=1, config={"epochs": 8, "size": 128}))
    found = [one["image AUROC"][:4] for one in table(text, "mvtec_ad / bottle") if one[""] == "ours"]
    assert sorted(found) == ["80.0", "90.0"]
    text = written(tmp_path / "seed", cell(config={"seed": 0}), cell(seed=1, config={"seed": 1}))
    assert row(text, "mvtec_ad / bottle", "fastflow")["seeds"] == "2 seeds"


def test_latency_of_the_exported_files(tmp_path: Path) -> None:
    timed = {"batch_1": 0.0625, "batch_16": 0.025, "threads": 1}
    text = written(tmp_path, cell(), cell(category="screw", seconds_per_image={**timed, "threads": 2}), cell(
        set="made_up", category="x", seconds_per_image=timed))  # fmt: skip
    slow, wide = table(text, "Latency and throughput of the exported files")
    assert slow["on"] == "H1, 1 threads"
    assert wide["ms per image, batch 1"] == "50.0–62.5"
    lines = section(text, "Latency and throughput of the exported files").splitlines()
    assert (
        "| made_up | ours | fastflow | reduced: 8 of 500 epochs; bf16 | H1, 1 threads | CPUExecutionProvider | 62.5 "
        in ("\n".join(lines))
    )
    assert lines[-2 if not lines[-1] else -1].endswith("| 16.0–20.0 | 25.0–40.0 |")


def test_provenance_is_at_the_foot(tmp_path: Path) -> None:
    text = written(tmp_path, cell(), cell(seed=1, commit="def", hardware={"processor": "other"}))
    foot = section(text, "Hardware, versions and commits")
    for line in ("- H1: num_cpus 2, processor some", "- H2: processor other", "- versions torch 2.15.0: 2 cells",
                 "- commit abc: 1 cells", "- day 2026-01-02: 2 cells"):  # fmt: skip
        assert line in foot
    found = row(text, "mvtec_ad / bottle", "fastflow")
    assert (found["on"], found["fit, s"]) == ("H1, 2 threads; H2, 2 threads", "–"), (
        "times of two machines are not averaged"
    )


def test_the_same_cells_give_the_same_bytes(tmp_path: Path) -> None:
    cells = [cell(seed=n, category=name, image=0.9 + n / 100) for n in range(3) for name in ("screw", "bottle")]
    cells += [failed(seed=3), cell(name="padim", detector="padim", role="baseline"), cell(**FULL)]
    text = written(tmp_path / "a", *cells)
    assert text == written(tmp_path / "b", *reversed(cells))
    assert text.startswith("# Results\n\nGenerated by `anomaly benchmark`, do not edit.\n")


def test_other_files_are_ignored_and_invalid_ones_named(tmp_path: Path) -> None:
    text = written(tmp_path, cell())
    for name, content in (("card.json", '{"verb": "fit"}'), ("list.json", "[1]")):
        (tmp_path / "cells" / name).write_text(content, encoding="utf-8")
    assert written(tmp_path) == text
    for bad, message in (
        ({**cell(seed=1), "role": "theirs"}, "role 'theirs'"),
        ({**cell(seed=1), "schedule_note": ""}, "without a schedule_note"),
        ({k: v for k, v in cell(seed=1).items() if k not in ("counts", "leaks")}, "has no counts, leaks"),
        (cell(), "hold the same cell"),
    ):
        (tmp_path / "cells" / "bad.json").write_text(json.dumps(bad), encoding="utf-8")
        with pytest.raises(DataError, match=message):
            written(tmp_path)
    (tmp_path / "cells" / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.json cannot be read as JSON"):
        written(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="choose another place"):
        write_results(tmp_path / "cells/mvtec_ad", tmp_path / "file/RESULTS.md")


def test_published_rows_average_to_their_published_means() -> None:
    for one in PUBLISHED:
        for figures, mean in ((one.image_auroc, one.image_mean), (one.pixel_auroc, one.pixel_mean)):
            assert bool(figures) == bool(mean)
            if figures:
                assert tuple(figures) == MVTEC_AD
                known = 94.7 if one.method == "DifferNet, paper" else mean  # stated in its caveat
                assert mean is not None
                tolerance = 0.5 if mean == int(mean) and all(v == int(v) for v in figures.values()) else 0.06
                assert sum(figures.values()) / 15 == pytest.approx(known, abs=tolerance), one.method
        assert one.image_auroc or one.pixel_auroc
    means = {one.method: one.image_mean for one in PUBLISHED}
    assert means["RIAD, paper"] == 91.7
    assert means["GANomaly, as compared by others"] == 76.1
    assert means["FastFlow R18, anomalib"] == 90.7
    assert len(means) == len(PUBLISHED)


def test_known_leaks_of_published_rows_are_stated() -> None:
    caveats = {one.method: " ".join(one.caveats) for one in PUBLISHED}
    assert "best AUROC on test" in caveats["GANomaly, as compared by others"]
    assert "94.7" in caveats["DifferNet, paper"]
    for method in ("FastFlow R18, anomalib", "FastFlow WRN50-2, anomalib"):
        assert "early stopping on the AUROC of the test images" in caveats[method]
    for method in ("FastFlow CaiT, paper", "AE-SSIM", "AE-L2", "AnoGAN"):
        assert "recalled" in caveats[method]


def test_pointing_has_a_column_and_old_cells_have_a_dash(tmp_path: Path) -> None:
    old, new = cell(name="old"), cell(name="new")
    new["figures"] = new["figures"] | {"pointing": {"num_hits": 45, "num_trials": 60}}
    text = written(tmp_path, old, new)
    assert row(text, "mvtec_ad / bottle", "new")["pointing"] == "75.0 (45 of 60)"
    assert row(text, "mvtec_ad / bottle", "old")["pointing"] == "–"
