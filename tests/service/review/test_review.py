"""The review of a finished run without a browser: pages of rows, labels, the run card, and refused requests."""

from __future__ import annotations

import csv
import errno
import http.client
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from anomaly.commands.main import run as cli
from anomaly.commands.review import review
from anomaly.errors import DataError
from anomaly.runs.labels import labels_file, read_labels, set_label
from anomaly.runs.row_index import RowIndex
from anomaly.runs.run_files import LEDGER, MANIFEST, SUMMARY, hash_files
from anomaly.runs.score_run import summarise
from anomaly.runs.sinks import Format, open_sink, read_rows
from anomaly.scoring.rows import COLUMNS, row_schema
from anomaly.service.static_files import FOLDER, REVIEW_PAGE
from anomaly.system.files import write_json
from anomaly.system.run_card import now
from tests.service.review.review_run import client_of, row_numbers, score_test_images
from tests.service.running_service import TOKEN, wait_for

MAIN = "import sys; from anomaly.commands.main import run; sys.exit(run(sys.argv[1:]))"


def synthetic_rows(num: int) -> list[dict[str, Any]]:
    """Rows of all kinds: equal scores, names that need CSV quotes, and identical files."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(num):
        score = float(str(np.float32(rng.choice([rng.gamma(2, 0.4), 0.75]))))
        path = f"s3://line/shift {n % 3}/" + (f'Ünit "{n}",\n=odd.png' if n % 50 == 7 else f"part_{n:06d}.png")
        row = dict.fromkeys(COLUMNS, "") | {
            "path": path, "sha256": f"{n // 2 if n % 100 == 1 else n:08x}" * 8, "status": "ok", "score": score,
            "threshold": 1.0,
            "verdict": "defect" if score > 1 else "review" if score > 0.9 else "good", "p_value": 0.5, "width": 8,
            "height": 8, "regions": [], "model": "0123456789abcdef",
        }  # fmt: skip
        if n % 40 == 3:
            row |= {"status": "truncated", "verdict": "", "score": None, "p_value": None, "width": None, "height": None}
            row["message"] = f"{path}: is cut short"
        if score > 1 and row["status"] == "ok":
            box = {"x": 1, "y": 2, "width": 3, "height": 4, "area": 12, "peak": 1.5, "weak": False}
            row["regions"] = [box]
        rows.append(row)
    return rows


def write_run(folder: Path, rows: list[dict[str, Any]], *, kind: Format) -> Path:
    folder.mkdir()
    sink = open_sink(folder, kind=kind, schema=row_schema(pa.schema([])), state={})
    sink.append(rows)
    sink.commit()
    sink.close()
    sink.clean()
    options = {"source": "s3://line", "models": {"": "0123456789abcdef" * 4}, "threshold": 1.0, "review_threshold": 0.9,
             "max_pixels": 10_000, "frame": "only", "by_product": False}  # fmt: skip
    (folder / LEDGER).write_text(
        json.dumps({"event": "begin", "date": now(), "asked": options}) + "\n", encoding="utf-8"
    )
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["verdict"] or row["status"]] = counts.get(row["verdict"] or row["status"], 0) + 1
    write_json(folder / SUMMARY, summarise(counts))
    write_json(folder / MANIFEST, {"files": hash_files(folder), "date": now()})
    return folder


@pytest.fixture
def finished_run(fitted_plate: Path, category: Path, tmp_path: Path) -> Path:
    """A finished run."""
    return score_test_images(fitted_plate / "model.onnx", category, tmp_path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_pages_equal_a_brute_force_filter(tmp_path: Path, kind: Format) -> None:
    rows = synthetic_rows(300)
    run = write_run(tmp_path / "run", rows, kind=kind)
    labels = {}
    for n in (5, 8, 2 * 101 // 2, 12, 40):
        if rows[n]["status"] == "ok":
            labels[rows[n]["sha256"]] = "good" if n % 2 else "defect"
            set_label(labels_file(run), rows[n], label=labels[rows[n]["sha256"]], by="")  # type: ignore[arg-type]
    queries = [
        {"sort": sort, "verdict": verdict, "label": label, "text": text}
        for sort in ("order", "score", "-score")
        for verdict in ("all", "good", "defect", "review", "error")
        for label, text in (("all", ""), ("all", "SHIFT 1/"), ("all", "ünit"), ("any", ""), ("none", "=odd"), ("good", ""),
                           ("defect", ""))
    ]  # fmt: skip
    with client_of(run) as client:
        for query in queries:
            expected = []
            for n, row in enumerate(rows):
                label = labels.get(row["sha256"], "") if row["status"] == "ok" else ""
                wanted = {"all": True, "any": label != "", "none": label == "", "good": label == "good"}
                if (
                    query["verdict"] in ("all", row["verdict"] or "error")
                    and wanted.get(query["label"], label == "defect")
                    and query["text"].lower() in row["path"].replace("\n", " ").lower()
                ):
                    expected.append({"number": n, "label": label, **row})
            if query["sort"] != "order":
                sign = 1 if query["sort"] == "score" else -1
                expected.sort(key=lambda row: (row["score"] is None, sign * (row["score"] or 0.0)))
            found: list[dict[str, Any]] = []
            while len(found) < len(expected):
                page = client.get("/api/rows", params=query | {"offset": str(len(found)), "limit": "41"}).json()
                assert page["total"] == len(expected)
                assert page["items"]
                found += page["items"]
            assert [row["number"] for row in found] == [row["number"] for row in expected], query
            for row, wanted_row in zip(found, expected, strict=True):
                scores = {"score", "threshold", "p_value"}
                assert {k: v for k, v in row.items() if k not in scores} == {
                    k: v for k, v in wanted_row.items() if k not in scores
                }
                if wanted_row["score"] is not None:
                    assert row["score"] == pytest.approx(wanted_row["score"], rel=1e-6)
                assert (row["score"] is None) == (wanted_row["score"] is None)
        counts = client.get("/api/rows").json()["counts"]
    assert sum(kind["all"] for kind in counts.values()) == 300
    assert counts["error"]["none"] == counts["error"]["all"] > 0
    for verdict in ("good", "defect", "review"):
        expected_labels = [labels.get(row["sha256"], "none") for row in rows if row["verdict"] == verdict]
        assert counts[verdict] == {"all": len(expected_labels)} | {
            label: expected_labels.count(label) for label in ("none", "good", "defect")
        }


def test_exported_table_contains_the_filtered_rows_in_the_order_of_the_run(tmp_path: Path) -> None:
    rows = synthetic_rows(60)
    rows[9]["path"] = "=1+2.png"
    run = write_run(tmp_path / "run", rows, kind="parquet")
    set_label(labels_file(run), rows[9] | {"status": "ok", "score": 2.0, "verdict": "defect"}, label="good", by="")
    with client_of(run) as client:
        response = client.get("/api/rows.csv", params={"text": ".png"})
    found = list(csv.DictReader(io.StringIO(response.text, newline="")))
    assert list(found[0]) == [*COLUMNS, "label"]
    assert [row["sha256"] for row in found] == [row["sha256"] for row in rows]
    assert found[9]["path"] == "'=1+2.png"
    assert [row["label"] for row in found].count("good") == 1
    assert found[9]["label"] == "good"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sort=name", "sort is 'name'; values: order, score, -score"),
        ("verdict=bad", "verdict is 'bad'"),
        ("label=x", "label is 'x'"),
        ("limit=501", "limit is '501': give a number from 0 to 500"),
        ("offset=-1", "offset is '-1'"),
        ("offset=" + "9" * 5000, "offset is '999"),
        ("path=/etc", "unknown parameter 'path'"),
        ("limit=1&limit=2", "given twice"),
        ("text=" + "a" * 201, "text has 201 characters"),
    ],
)
def test_wrong_queries_are_refused(tmp_path: Path, query: str, words: str) -> None:
    with client_of(write_run(tmp_path / "run", synthetic_rows(4), kind="csv")) as client:
        answer = client.get(f"/api/rows?{query}")
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_labels_are_saved_at_once_and_survive_a_restart(finished_run: Path) -> None:
    rejected = row_numbers(finished_run, folder="scratch")
    rows = list(read_rows(finished_run))
    with client_of(finished_run, by="QA, shift 3") as client:
        for number, label in ((rejected[0], "good"), (rejected[1], "defect"), (rejected[2], "good"), (rejected[2], "")):
            response = client.put(f"/api/images/{number}/label", json={"label": label})
            assert (response.status_code, response.json()["label"]) == (200, label)
        assert response.json()["counts"]["defect"] == {"all": 6, "none": 4, "good": 1, "defect": 1}
        written = read_labels(labels_file(finished_run))
        assert {(m.path, m.label, m.by) for m in written.values()} == {
            (rows[rejected[0]]["path"], "good", "QA, shift 3"),
            (rows[rejected[1]]["path"], "defect", "QA, shift 3"),
        }
        set_label(labels_file(finished_run), rows[rejected[3]], label="good", by="another")  # by a second reviewer
        assert client.get("/api/rows?label=good").json()["total"] == 2
        bad = next(n for n, row in enumerate(rows) if row["status"] != "ok")
        response = client.put(f"/api/images/{bad}/label", json={"label": "good"})
        assert response.status_code == 409
        assert "has no verdict to label: its row is an error (not_an_image)" in response.json()["error"]
        for body in ({"label": "fine"}, {"label": None}, {}, [], {"label": "good", "path": "/etc/passwd"}):
            assert client.put(f"/api/images/{rejected[0]}/label", json=body).status_code == 400
        assert client.put(f"/api/images/{rejected[0]}/label", content=b'{"label": "good"}').status_code == 415
        headers = {"content-type": "application/json"}
        assert client.put(f"/api/images/{rejected[0]}/label", content=b"{", headers=headers).status_code == 400
        assert client.put(f"/api/images/{rejected[0]}/label", content=b" " * 5000, headers=headers).status_code == 413
    with client_of(finished_run) as client:
        items = client.get("/api/rows?label=any").json()["items"]
        assert {(item["number"], item["label"]) for item in items} == {
            (rejected[0], "good"), (rejected[1], "defect"), (rejected[3], "good"),
        }  # fmt: skip
        assert client.post("/api/run/check").json()["state"] in ("checking", "intact")
        wait_for(lambda: client.get("/api/run").json()["files"]["state"] != "checking")
        assert client.get("/api/run").json()["files"] == {"state": "intact", "message": ""}


def test_unwritable_labels_are_refused(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    labels_file(finished_run).mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        client_of(finished_run)
    labels_file(finished_run).rmdir()
    with client_of(finished_run) as client:
        monkeypatch.setattr(Path, "replace", fail)
        answer = client.put("/api/images/1/label", json={"label": "good"})
    assert answer.status_code == 409
    assert "the previous labels stay" in answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/images/999/picture", "/api/images/-1/picture", "/api/images/../../etc/passwd",
        "/api/images/..%2f..%2fetc/picture",
        "/api/images/0.0/map", "/api/images//etc/passwd/picture", "/api/images/" + "1" * 5000 + "/picture",
        "/api/images/%D9%A1/picture", "/api/images/0/label/x", "/static/../app.py", "/static/%2e%2e/app.py", "/static/main.js",
        "/rows.csv", "/metrics", "/score",
    ],
)  # fmt: skip
def test_only_numbers_name_images(finished_run: Path, path: str) -> None:
    with client_of(finished_run) as client:
        answer = client.get(path)
    assert answer.status_code in (404, 405)
    assert "root:" not in answer.text


def test_token_is_required_and_other_sites_are_refused(finished_run: Path) -> None:
    with client_of(finished_run, token=TOKEN) as client:
        for path, (name, _) in REVIEW_PAGE.items():
            answer = client.get(path)
            assert (answer.status_code, answer.content) == (200, (FOLDER / name).read_bytes())
            assert "default-src 'none'" in answer.headers["content-security-policy"]
        for method, path in (
            ("GET", "/api/run"), ("GET", "/api/rows"), ("GET", "/api/rows.csv"), ("GET", "/api/images/0/thumbnail"),
            ("PUT", "/api/images/0/label"), ("POST", "/api/run/check"),
        ):  # fmt: skip
            assert client.request(method, path).status_code == 401
            assert client.request(method, path, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/api/run", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    with client_of(finished_run) as client:
        foreign = {"origin": "http://evil.example"}
        assert client.put("/api/images/0/label", json={"label": "good"}, headers=foreign).status_code == 403
        assert client.get("/api/run", headers={"host": "evil.example"}).status_code == 421
    assert not labels_file(finished_run).exists()


def test_card_contains_run_guarantee_drift_and_commands(finished_run: Path) -> None:
    with client_of(finished_run, by="Ada") as client:
        card = client.get("/api/run").json()
    settings = json.loads((finished_run / LEDGER).read_text(encoding="utf-8").splitlines()[0])["asked"]
    assert (card["name"], card["source"], card["threshold"], card["by"]) == (
        "finished_run",
        settings["source"],
        1.0,
        "Ada",
    )
    assert card["counts"]["error"]["all"] == 1
    (model,) = card["models"]
    assert (model["sha256"], model["guarantee"]) == (settings["models"][""], "expected")
    assert card["drift"][0]["alarmed"] is False
    assert card["files"]["state"] == "unchecked"
    for line, verb in zip(card["commands"], ("calibrate", "score", "diff"), strict=True):
        assert line.startswith(f"anomaly {verb} ")
    assert (
        f"{finished_run}/models/00_model.onnx --labels {labels_file(finished_run)} --out {finished_run}-recalibrated.onnx"
        in card["commands"][0]
    )


def test_changed_run_is_reported(finished_run: Path) -> None:
    (finished_run / "summary.json").write_text((finished_run / "summary.json").read_text() + " ")
    with client_of(finished_run) as client:
        client.post("/api/run/check")
        wait_for(lambda: client.get("/api/run").json()["files"]["state"] != "checking")
        files = client.get("/api/run").json()["files"]
    assert files["state"] == "changed"
    assert "summary.json was changed" in files["message"]


def test_unfinished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", synthetic_rows(4), kind="csv")
    (run / MANIFEST).unlink()
    assert cli(["review", str(run), "--port", "0"]) == 1
    assert "holds no finished run" in capsys.readouterr().err
    with pytest.raises(DataError, match="--resume"):
        review(run)


def test_damaged_rows_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", synthetic_rows(9), kind="csv")
    text = (run / "rows.csv").read_bytes()
    (run / "rows.csv").write_bytes(text.replace(b",good,", b",gold,", 1))
    with pytest.raises(DataError, match=r"row \d cannot be read"):
        RowIndex(run)


@pytest.mark.slow
def test_large_run_has_a_small_index_and_short_pages(tmp_path: Path) -> None:
    import tracemalloc

    num = 20_000
    rows = synthetic_rows(num)
    run = write_run(tmp_path / "run", rows, kind="parquet")
    tracemalloc.start()
    index = RowIndex(run)
    num_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(index) == num
    assert num_bytes < 100 * num
    with client_of(run) as client:
        for offset in (0, 120, 9000):
            found = client.get(f"/api/rows?sort=-score&verdict=all&offset={offset}&text=part_0").json()
            assert len(found["items"]) == 120
        assert len(client.get("/api/rows?limit=500").content) < 500_000


def test_process_serves_until_it_is_stopped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", synthetic_rows(8), kind="csv")
    arguments = [sys.executable, "-c", MAIN, "review", str(run), "--port", "0"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"{run}: 8 images; labels in {labels_file(run)}\n"
        found = re.fullmatch(r"serving on http://127\.0\.0\.1:(\d+)\n", process.stderr.readline())
        assert found
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
        connection.request("GET", "/api/rows")
        assert json.loads(connection.getresponse().read())["total"] == 8
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
        assert process.wait(timeout=20) == 0


def test_other_machines_need_a_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["review", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert "other machines can reach" in capsys.readouterr().err
