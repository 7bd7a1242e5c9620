"""The verb `serve`: refused options, names of models, and a process from start to stop."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from anomaly.commands.main import run
from anomaly.commands.serve import serve
from anomaly.errors import ModelError, UsageError
from anomaly.service.auth import TOKEN_VARIABLE, is_loopback, read_token
from anomaly.service.model_repository import find_model_files

MAIN = "import sys; from anomaly.commands.main import run; sys.exit(run(sys.argv[1:]))"
TOKEN = "0123456789abcdef"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_machines_need_a_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(UsageError, match=r"other machines can reach .*: give --token-file or ANOMALY_TOKEN, or"):
        serve(["no.onnx"], host=host)
    with pytest.raises(ModelError, match=r"no model at no\.onnx"):  # the address was accepted
        serve(["no.onnx"], host=host, allow_anonymous=True)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with pytest.raises(ModelError, match=r"no model at no\.onnx"):
        serve(["no.onnx"], host=host)


def test_addresses_of_this_machine() -> None:
    assert all(is_loopback(address) for address in ("127.0.0.1", "127.9.9.9", "::1", "::1%lo"))
    assert not any(is_loopback(address) for address in ("0.0.0.0", "::", "10.0.0.1", "fe80::1%eth0"))


def test_token_file_takes_precedence_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "from-the-environment")
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert (read_token(file), read_token(None)) == (TOKEN, "from-the-environment")
    monkeypatch.delenv(TOKEN_VARIABLE)
    assert read_token(None) is None
    for wrong in ("short", "", "with a space in between", "ümlaut-in-the-token"):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(UsageError, match="use at least 16 printable ASCII characters") as caught:
            read_token(str(file))
        assert not wrong or wrong not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_token(str(tmp_path / "none"))


def test_models_are_named_after_file_folder_or_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("runs/plate/model.onnx", "files/a.onnx", "files/b.onnx", "files/a/2/model.onnx", "files/a/x/model.onnx",
                 "files/c/10/model.onnx", "files/c/9/model.onnx"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)

    def named(*models: str) -> list[tuple[str, int]]:
        return [(file.name, file.version) for file in find_model_files(models)]

    assert named("runs/plate/model.onnx", "files/a.onnx", "x=files/a.onnx") == [("plate", 1), ("a", 1), ("x", 1)]
    assert named("runs/plate") == [("plate", 1)]
    assert named("files") == [("a", 1), ("b", 1), ("a", 2), ("c", 10), ("c", 9)]
    for models, words in (
        (("files/a.onnx", "files"), r"are both a version 1: give one of them another name"),
        (("a b=files/a.onnx",), "'a b' is an invalid model name"),
        (("=files/a.onnx",), "'' is an invalid model name"),
        (("runs",), "contains no model"),
        ((), "no model to serve"),
    ):
        with pytest.raises(UsageError, match=words):
            find_model_files(models)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-memory-mib", "100"], "raise --max-memory-mib to"),
        (["--timeout", "0"], "timeout is 0.0: give a number above 0"),
        (["--max-queue", "0"], "max_images is 0"),
        (["--max-delay-ms", "-1"], "max_delay_ms is -1"),
        (["--batch-size", "0"], "batch size 0"),
        (["--threshold", ".nan"], "threshold nan"),
        (["--host", "no.such.host.invalid"], "is not a valid listening address"),
        (["--host", ""], "is not a valid listening address"),
        (["--port", "70000"], "is not a valid listening address"),
        (["--token-file", "none"], "cannot be read"),
        (["--alow-anonymous"], "nearest: --allow-anonymous"),
    ],
)
def test_wrong_options_are_refused(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "m.onnx", *options]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_occupied_port_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["serve", str(model), "--port", str(taken.getsockname()[1]), "--device", "cpu"]) == 1
    assert "cannot listen on" in capsys.readouterr().err


def test_garbage_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(b"garbage")
    assert run(["serve", str(tmp_path / "m.onnx"), "--port", "0"]) == 1
    assert "is not an ONNX file or is cut short" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_process_serves_until_it_is_stopped(model: Path, category: Path, tmp_path: Path, end: signal.Signals) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    second = shutil.copy(model, tmp_path / "second.onnx")
    arguments = ["serve", f"plate={model}", second, "--port", "0", "--token-file", str(token), "--device", "cpu"]
    image = next((category / "test/good").iterdir()).read_bytes()
    with subprocess.Popen([sys.executable, "-c", MAIN, *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(3)]
        assert [line.split(" version ")[0] for line in lines[:2]] == ["plate", "second"]
        found = re.fullmatch(r"serving on http://127\.0\.0\.1:(\d+)\n", lines[2])
        assert found, lines
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        connection.request("POST", "/score?model=plate&overlay=false", body=image)
        answer = connection.getresponse()
        assert (answer.status, list(json.loads(answer.read()))) == (401, ["error"])
        connection.request("POST", "/score?model=plate", body=image, headers={"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        assert answer.getheader("server") is None
        assert (answer.status, json.loads(answer.read())["status"]) == (200, "ok")
        connection.close()
        process.send_signal(end)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 0
    logged = [json.loads(line) for line in rest.splitlines()]
    assert [(entry["path"], entry["status"]) for entry in logged] == [("/score", 401), ("/score", 200)]
    assert TOKEN not in rest
