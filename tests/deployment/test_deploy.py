"""Files for other systems: their own readers accept them, their commands are valid, and their paths exist."""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from anomaly.commands.main import VERBS, run
from anomaly.commands.parser import parse
from anomaly.deployment.triton import model_config
from anomaly.inference.artifact import Metadata, load_graph, read_metadata

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CONTAINER_FILES = sorted(DEPLOY.rglob("Containerfile"))
INSTRUCTIONS = {"ARG", "FROM", "COPY", "RUN", "ENV", "USER", "WORKDIR", "EXPOSE", "ENTRYPOINT", "CMD"}


def parsed(text: str) -> Any:
    """Parse a model's configuration with Triton's own message."""
    client = importlib.util.find_spec("tritonclient")
    if client is None or not client.submodule_search_locations:
        pytest.skip("tritonclient is not installed")
    from google.protobuf import text_format

    path = Path(client.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(text, module.ModelConfig())


def metadata_of(model: Path) -> Metadata:
    return read_metadata(load_graph(model), name=str(model))


def test_triton_repository_holds_the_file_and_its_configuration(model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    command = ["deploy", "triton", str(model), str(repository), "--name", "plate", "--max_delay_ms", "0.5"]
    assert run(command) == 0
    assert (repository / "plate/1/model.onnx").read_bytes() == model.read_bytes()
    config = parsed((repository / "plate/config.pbtxt").read_text(encoding="utf-8"))
    assert (config.name, config.platform, config.max_batch_size) == ("plate", "onnxruntime_onnx", 16)
    assert [(i.name, list(i.dims)) for i in config.input] == [("image", [-1, -1, 3])]
    assert [(o.name, list(o.dims), list(o.reshape.shape)) for o in config.output] == [
        ("score", [1], []),
        ("anomaly_map", [-1, -1], []),
    ]
    assert config.output[0].HasField("reshape")
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert run(command) == 1  # a version is never overwritten
    assert run([*command, "--version", "2"]) == 0
    assert sorted(path.name for path in (repository / "plate").iterdir()) == ["1", "2", "config.pbtxt"]


def test_fixed_model_runs_in_tensorrt_with_its_own_number_of_images(model: Path) -> None:
    metadata = replace(metadata_of(model), fixed=[4, 72, 88], precision="fp16")
    options: dict[str, Any] = {"name": "plate", "max_batch": 16, "max_delay_ms": 1.0, "instances": 2}
    config = parsed(model_config(metadata, **options, device="gpu", tensorrt=True))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [4, 72, 88, 3]
    assert list(config.output[0].dims) == [4]
    assert not config.HasField("dynamic_batching")
    assert config.instance_group[0].count == 2
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "two words"], "is not valid"),
        (["--max_batch", "0"], "give at least 1"),
        (["--tensorrt", "true"], "export the model with --fixed N,H,W"),
    ],
)
def test_invalid_model_or_option_is_refused(
    options: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["deploy", "triton", str(model), str(tmp_path / "repository"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def logical_lines(file: Path) -> list[str]:
    text = re.sub(r"^#.*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]


@pytest.mark.parametrize("file", CONTAINER_FILES, ids=lambda file: file.parent.name)
def test_container_file_copies_existing_files_and_runs_without_privileges(file: Path) -> None:
    instructions = [line.split(maxsplit=1) for line in logical_lines(file)]
    words = [word for word, _ in instructions]
    assert set(words) <= INSTRUCTIONS
    assert words.index("USER") > max(n for n, word in enumerate(words) if word in ("RUN", "COPY"))
    (base,) = [rest for word, rest in instructions if word == "FROM"]
    assert base == "${BASE}" or re.fullmatch(r"[a-z/]+:[0-9][\w.-]+", base)  # a version, never the latest
    assert "torch" not in file.read_text(encoding="utf-8").replace("no torch", "")
    for word, rest in instructions:
        if word == "COPY":
            sources = [source for source in rest.split()[:-1] if not source.startswith("${")]
            assert all((ROOT / source).exists() for source in sources)
        if word == "USER":
            assert rest == "10001"
        if word in ("ENTRYPOINT", "CMD"):
            assert yaml.safe_load(rest)
    extras = set(re.findall(r"/src\[([a-z-]+)\]", file.read_text(encoding="utf-8")))
    assert extras <= {"serve", "serve-cpu", "serve-gpu"}
    assert len(extras) == 1


def commands(value: Any) -> list[list[str]]:
    """Find every command line of the package in a parsed file."""
    if isinstance(value, dict):
        args = value.get("args")
        if isinstance(args, list) and args[0] in VERBS:
            return [list(map(str, args))]
        return [command for inner in value.values() for command in commands(inner)]
    if isinstance(value, list):
        return [command for inner in value for command in commands(inner)]
    found = re.search(r"\banomaly (\w+ .*)", value) if isinstance(value, str) else None
    plain = re.sub(r"\$\(\(.*?\)\)", "1", found[1]) if found else ""
    return [shlex.split(plain)] if plain else []


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("*.yaml")), ids=lambda file: f"{file.parent.name} {file.name}")
def test_commands_of_a_cluster_file_are_valid(file: Path) -> None:
    documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    assert all({"apiVersion", "kind", "metadata"} <= set(document) for document in documents)
    found = [command for document in documents for command in commands(document)]
    assert found
    for verb, *arguments in found:
        check_command(verb, arguments)


def check_command(verb: str, arguments: list[str]) -> None:
    function = getattr(importlib.import_module(f"anomaly.commands.{verb}"), verb)
    assert parse(verb, function, arguments)


def test_unit_file_starts_the_service_without_privileges() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "systemd" / "anomaly.service", encoding="utf-8")
    assert unit.sections() == ["Unit", "Service", "Install"]
    service = unit["Service"]
    assert service["ProtectSystem"] == "strict"
    assert service["NoNewPrivileges"] == service["DynamicUser"] == "yes"
    program, verb, *arguments = shlex.split(service["ExecStart"])
    assert program.endswith("/bin/anomaly")
    check_command(verb, arguments)


def test_readme_names_exactly_the_files() -> None:
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    files = {path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*") if path.is_file()} - {"README.md"}
    assert set(re.findall(r"`([a-z]+/[\w.]+)`", text)) >= files
    for name in re.findall(r"`([a-z]+/[A-Za-z.]+)`", text):
        assert (DEPLOY / name).is_file()


def test_table_of_platforms_matches_the_figures() -> None:
    figures = json.loads((ROOT / "benchmarks" / "results" / "platforms.json").read_text(encoding="utf-8"))["result"]
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    rows = {row[0]: row[1:] for row in cells if len(row) == 3}
    for ran in figures["run"].values():
        cell = rows["Linux aarch64" if ran["machine"] == "aarch64" else "Linux x86-64"][0]
        assert ran["python"].rpartition(".")[0] in cell
        assert (ran["verbs_failed"], ran["verdicts_flipped"], ran["regions_moved"]) == ({}, 0, 0)
    for platform in {found["platform"] for found in figures["resolved"]}:
        for extra in ("serve-cpu", "serve-gpu"):
            resolved = [f for f in figures["resolved"] if (f["platform"], f["extra"]) == (platform, extra)]
            missing = [found["python"] for found in resolved if "missing" in found]
            assert (f"`[{extra}]`" in rows[platform][1]) == (not missing), (platform, extra, missing)
