"""README is short, and its figures are those of the benchmark."""

from __future__ import annotations

import re

from tests.docs.pages import README, ROOT, python_blocks, read

MAX_BYTES = 7168
BENCHMARK_ROWS = {"frozen_features": "nearest_neighbour (frozen_features)", "anomalib": "padim (anomalib)"}
"""Detector of the table -> its row in RESULTS.md, where the names differ"""


def test_readme_is_short() -> None:
    assert README.stat().st_size <= MAX_BYTES
    (code,) = python_blocks(README)
    assert len(code.splitlines()) == 6
    shell = re.search(r"## Four lines of shell\n\n((?:    .*\n)+)", read(README))
    assert shell
    assert len(shell[1].splitlines()) == 4
    guarantee = re.search(r"## The guarantee\n\n((?:.+\n)+)\n", read(README))
    assert guarantee
    assert len(guarantee[1].splitlines()) == 5


def test_table_of_detectors_has_the_measured_figures() -> None:
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .*? \| .*? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", read(README), re.MULTILINE)
    assert len(rows) == 9
    for detector, *figures in rows:
        for category, figure in zip(("bottle", "capsule", "screw"), figures, strict=True):
            table = results[results.index(f"### mvtec_ad / {category}") :]
            name = re.escape(BENCHMARK_ROWS.get(detector, detector))
            measured = re.search(rf"^\| \w+ \| {name} \|[^|]*\|[^|]*\| \**([\d.]+)\** ", table, re.MULTILINE)
            assert measured
            assert measured[1] == figure, f"{detector} on {category}"
