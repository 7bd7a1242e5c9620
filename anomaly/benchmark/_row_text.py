"""The text of a table's cells: figures, rates, times and stamps of a row, as Markdown."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from anomaly.benchmark.leaks import stamp
from anomaly.benchmark.rows import Json, Row
from anomaly.conformal.calibration import REPORTED_ALPHAS

NONE = "–"
Valued = tuple[float | None, Hashable]
"""A figure, and the key of the rows that it is compared with"""


def best_of(values: Iterable[Valued], *, better: Callable[[Iterable[float]], float]) -> set[Valued]:
    """Find the best value of each set of two or more comparable rows."""
    by_peers: dict[Hashable, list[float]] = defaultdict(list)
    for value, peers in values:
        if value is not None:
            by_peers[peers].append(value)
    return {(better(found), peers) for peers, found in by_peers.items() if len(found) > 1}


def figure_text(row: Row, figure: str, best: set[Valued]) -> str:
    """Mean with its range over the seeds, or with the interval of one seed; the best is bold."""
    estimates, mean = row.estimates(figure), row.mean(figure)
    shown = number_text(mean, 1, bold=not row.leaked and (mean, row.peers()) in best)
    if len(estimates) == 1:
        low, high = estimates[0]["interval"]
        return f"{shown} [{100 * low:.1f}, {100 * high:.1f}]"
    values = [100 * estimate["value"] for estimate in estimates]
    return f"{shown} ({min(values):.1f}–{max(values):.1f})" if values else shown


def rate_text(row: Row, rate: str) -> str:
    """Mean rate with the counts by seed; a dash where no seed has one."""
    counted = [cell["figures"].get(rate) for cell in row.cells]
    found = [one for one in counted if one is not None and one["num_trials"]]
    if not found:
        return NONE
    mean = statistics.mean(one["num_hits"] / one["num_trials"] for one in found)
    counts = ", ".join(str(one["num_hits"]) for one in found)
    return f"{100 * mean:.1f} ({counts} of {', '.join(sorted({str(one['num_trials']) for one in found}))})"


def rates_text(row: Row, rate: str) -> str:
    """Mean rates at 1, 2 and 5 %; a dash where a seed has none."""
    shown = []
    for alpha in REPORTED_ALPHAS:
        found = [cell["figures"].get("rates", {}).get(f"{alpha:g}") for cell in row.cells]
        counts = [one[rate] for one in found if one is not None and one[rate]["num_trials"]]
        complete = bool(counts) and len(counts) == len(found)
        mean = statistics.mean(one["num_hits"] / one["num_trials"] for one in counts) if complete else None
        shown.append(number_text(None if mean is None else 100 * mean, 1, bold=False))
    return NONE if set(shown) == {NONE} else " / ".join(shown)


def mean_time(row: Row, keys: tuple[str, str], scale: float, digits: int, machine: str) -> float | None:
    """Mean over the seeds; None where they ran on several machines."""
    times = row.times(*keys)
    return round(scale * statistics.mean(times), digits) if times and ";" not in machine else None


def machine_text(row: Row, hardware: Mapping[str, str]) -> str:
    """Labels of the hardware with the numbers of threads."""
    threads = {
        f"{hardware[key_of(cell['hardware'])]}, {(cell.get('seconds_per_image') or {}).get('threads', NONE)} threads"
        for cell in row.cells
    }
    return "; ".join(sorted(threads)) or NONE


def parity_text(row: Row) -> str:
    """Parity of the worst seed."""
    found = [cell["parity"] for cell in row.cells if cell.get("parity")]
    if not found:
        return NONE
    worst = max(max(one["score"]["max"], one["map"]["max"]) for one in found)
    num_flips = sum(one["num_flips"] for one in found)
    refused = ", refused" if any(one.get("refused") for one in found) else ""
    return f"{worst:.1e}" + (f", {num_flips} flips" if num_flips else "") + refused


def stamp_text(row: Row) -> str:
    """Leak stamp and number of failed seeds."""
    parts = [stamp(row.leaks, num_checks=min(cell["num_checks"] for cell in row.cells))] if row.cells else []
    if row.failed:
        parts.append(f"{len(row.failed)} failed")
    return plain_text("; ".join(parts))


def seeds_text(row: Row) -> str:
    """Number of measured seeds."""
    num = len(row.cells)
    return f"{num} of {row.num_seeds} seeds" if num < row.num_seeds else f"{num} seed{'s' * (num > 1)}"


def name_text(row: Row) -> str:
    """Name of the row, with its detector where that differs."""
    return plain_text(row["name"] if row["name"] == row["detector"] else f"{row['name']} ({row['detector']})")


def number_text(value: float | None, digits: int, *, bold: bool) -> str:
    """Format a number; a dash for None."""
    if value is None:
        return NONE
    return f"**{value:.{digits}f}**" if bold else f"{value:.{digits}f}"


def labels_of(letter: str, values: Iterable[Json]) -> dict[str, str]:
    """Give every different value a short label, by its key."""
    return {key: f"{letter}{number}" for number, key in enumerate(sorted({key_of(value) for value in values}), start=1)}


def key_of(value: Json) -> str:
    """Key of a JSON value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def pairs_text(value: Json) -> str:
    """Names and values of a JSON object in one line."""
    return plain_text(", ".join(f"{key} {one}" for key, one in sorted(value.items())))


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def plain_text(value: str) -> str:
    """Escape text for one cell of a Markdown table."""
    return " ".join(value.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
