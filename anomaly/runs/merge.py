"""Merge the shards of a run into one run, in the order of the images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from anomaly.errors import DataError, OutputError, UsageError
from anomaly.runs.run_files import (
    LEDGER,
    MANIFEST,
    SUMMARY,
    check_manifest,
    hash_files,
    listed_images,
    read_ledger,
    run_options,
)
from anomaly.runs.score_run import COMMIT_IMAGES, summarise
from anomaly.runs.sinks import Format, Values, open_sink, read_rows
from anomaly.scoring.rows import row_schema
from anomaly.system.files import as_path, sha256_of, write_json
from anomaly.system.run_card import now


@dataclass(frozen=True)
class MergedRun:
    """A run that was merged from shards."""

    path: Path
    num_images: int
    num_shards: int


def merge(runs: Sequence[str | Path], *, out: str | Path) -> MergedRun:
    """Merge the finished shards of a run into one run with rows, summary and manifest.

    The ledger of the merged run names the shards and the hashes of their manifests.

    Args:
        runs: folders of all shards, in any order.
        out: folder of the merged run, new or empty.

    Raises:
        UsageError: a shard that is missing, given twice or of another run, or a folder that is not empty.
        DataError: an unfinished or changed shard.
        OutputError: the folder cannot be written.
    """
    if not runs:
        raise UsageError("no shards: name the folders of all shards of a run")
    out = as_path(out, name="out")
    paths = [as_path(run, name="runs") for run in runs]
    ledgers = {run: read_ledger(run) for run in paths}
    for run in paths:
        check_manifest(run)
        if not run_options(ledgers[run])["shard"]:
            raise UsageError(f"{run} is not a shard: score with --shard I/N")
    order = sorted(paths, key=lambda run: int(run_options(ledgers[run])["shard"].split("/")[0]))
    shards = [run_options(ledgers[run])["shard"] for run in order]
    num = int(shards[0].split("/")[1])
    if shards != [f"{n}/{num}" for n in range(1, num + 1)]:
        raise UsageError(f"shards {', '.join(shards)} are not all of 1/{num} to {num}/{num}, each once: give all")
    shared = _shared_options(ledgers[order[0]])
    for run in order[1:]:
        other = _shared_options(ledgers[run])
        different = [name for name in shared if shared[name] != other.get(name)]
        if different:
            raise UsageError(
                f"{run} is a shard of another run than {order[0]}: {', '.join(different)} differ; give other shards"
            )
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty: name a new folder")
    columns = listed_images(ledgers[order[0]])["extra"]
    schema = row_schema(pa.schema([(name, pa.type_for_alias(alias)) for name, alias in columns]))
    counts = _write_rows(_interleaved(order), out, kind=shared["format"], schema=schema)
    write_json(out / SUMMARY, summarise(counts))
    manifests = {str(run): sha256_of(run / MANIFEST) for run in order}
    entry = {"event": "merge", "date": now(), "asked": shared, "shards": manifests}
    (out / LEDGER).write_text(json.dumps(entry) + "\n", encoding="utf-8")
    write_json(out / MANIFEST, {"files": hash_files(out), "date": now()})
    return MergedRun(out, counts.total(), num)


def _shared_options(ledger: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in run_options(ledger).items() if name not in ("shard", "device")}


def _write_rows(rows: Iterator[Values], out: Path, *, kind: Format, schema: pa.Schema) -> Counter[str]:
    """Write the rows of a run; the number of each verdict and error code."""
    counts: Counter[str] = Counter()
    try:
        out.mkdir(parents=True, exist_ok=True)
        sink = open_sink(out, kind=kind, schema=schema, state={})
        waiting: list[Values] = []
        for row in rows:
            counts[row["verdict"] or row["status"]] += 1
            waiting.append(row)
            if len(waiting) == COMMIT_IMAGES:
                sink.append(waiting)
                sink.committed(sink.commit())
                waiting = []
        sink.append(waiting)
        sink.committed(sink.commit())
        sink.close()
        sink.clean()
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}; choose another place") from error
    return counts


def _interleaved(runs: list[Path]) -> Iterator[Values]:
    """Rows in the order of the images: the first row of every shard, the second row of every shard …"""
    readers = [read_rows(run) for run in runs]
    while True:
        for number, reader in enumerate(readers):
            row = next(reader, None)
            if row is None:
                if any(next(later, None) is not None for later in readers[number + 1 :]):
                    raise DataError(
                        f"{runs[number]} is shorter than a later shard: score all shards from one image list"
                    )
                return
            yield row
