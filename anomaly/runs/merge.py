"""The verb `merge`: the shards of a night become one run again, in the order of the images."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from anomaly.errors import DataError, OutputError, UsageError
from anomaly.runs.run_directory import LEDGER, LISTED, MANIFEST, SUMMARY, check_manifest, hash_files, read_ledger
from anomaly.runs.score_run import COMMIT_IMAGES, summarise
from anomaly.runs.sinks import Values, open_sink, read_rows
from anomaly.scoring.rows import row_schema
from anomaly.system.files import sha256_of, write_json
from anomaly.system.run_card import now


def merge(runs: list[Path], *, out: Path) -> Path:
    """Merge the finished shards of a run into one run directory of all rows, in the order of the images.

    Args:
        runs: the run directories of all shards, in any order.
        out: the directory to write, new.

    Returns:
        The directory: rows, summary, and a manifest; its ledger names the shards and the hashes of their manifests.

    Raises:
        UsageError: a shard that is missing, doubled or of another run, or a directory that is taken.
        DataError: a shard that is unfinished or was changed.
        OutputError: the directory cannot be written.
    """
    begun = {run: read_ledger(run) for run in runs}
    for run, entries in begun.items():
        check_manifest(run)
        if not entries[0]["asked"]["shard"]:
            raise UsageError(f"{run} is no shard: score with --shard i/n")
    order = sorted(runs, key=lambda run: int(begun[run][0]["asked"]["shard"].split("/")[0]))
    shards = [begun[run][0]["asked"]["shard"] for run in order]
    num = int(shards[0].split("/")[1])
    if shards != [f"{n}/{num}" for n in range(1, num + 1)]:
        raise UsageError(f"shards {', '.join(shards)} are not all of 1/{num} to {num}/{num}, each once")
    first = _shared(begun[order[0]])
    for run in order[1:]:
        other = _shared(begun[run])
        moved = [name for name in first if first[name] != other.get(name)]
        if moved:
            raise UsageError(f"{run} is a shard of another run than {order[0]}: {', '.join(moved)} differ")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty: name a new directory")
    listed = next(entry for entry in begun[order[0]] if entry["event"] == LISTED)
    schema = row_schema(pa.schema([(name, pa.type_for_alias(alias)) for name, alias in listed["extra"]]))
    counts: Counter[str] = Counter()
    try:
        out.mkdir(parents=True, exist_ok=True)
        sink = open_sink(out, kind=first["format"], schema=schema, state={})
        waiting: list[Values] = []
        for row in _interleaved(order):
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
    write_json(out / SUMMARY, summarise(counts))
    manifests = {str(run): sha256_of(run / MANIFEST) for run in order}
    entry = {"event": "merge", "date": now(), "asked": first, "shards": manifests}
    (out / LEDGER).write_text(json.dumps(entry) + "\n", encoding="utf-8")
    write_json(out / MANIFEST, {"files": hash_files(out), "date": now()})
    print(f"{sum(counts.values())} images of {num} shards in {out}", file=sys.stderr)
    return out


def _shared(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in entries[0]["asked"].items() if name not in ("shard", "device")}


def _interleaved(runs: list[Path]) -> Iterator[Values]:
    """Rows in the order of the images: the first of every shard, the second of every shard …"""
    readers = [read_rows(run) for run in runs]
    while True:
        for number, reader in enumerate(readers):
            row = next(reader, None)
            if row is None:
                if any(next(later, None) is not None for later in readers[number + 1 :]):
                    raise DataError(f"{runs[number]} ends before a later shard does: the shards saw different lists")
                return
            yield row
