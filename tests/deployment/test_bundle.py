"""Bundles for machines without a network. `benchmarks/bundle.py` tests the whole installation."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import anomaly
from anomaly.commands.main import run
from anomaly.deployment import bundle as bundle_module
from anomaly.deployment.bundle import SCRIPTS, write_bundle
from anomaly.deployment.bundle import bundle as make_bundle
from anomaly.deployment.wheels import Target, closure, download, pins, repack, this_python
from anomaly.errors import OutputError, UsageError
from anomaly.nn import backbones

ROOT = Path(anomaly.__file__).resolve().parent
HERE = Target(python=this_python())
JETSON = Target(python="3.10", platform="manylinux_2_35_aarch64")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return this package's wheel."""
    return repack(tmp_path_factory.mktemp("own"))


@pytest.fixture
def bundle(model: Path, own: Path, tmp_path: Path) -> Path:
    """Make a bundle with a model and this package's wheel only."""
    made = tmp_path / "bundle"
    for folder, file in (("wheels", own), ("models", model)):
        (made / folder).mkdir(parents=True)
        shutil.copy(file, made / folder)
    write_bundle(made, extra="serve-cpu", target=HERE, weights=[], models=[{"file": "models/model.onnx"}])
    return made


def check(bundle: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(bundle / "check.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=bundle.parent)


@pytest.mark.slow
def test_own_wheel_holds_the_running_files_and_installs(own: Path, tmp_path: Path) -> None:
    assert repack(tmp_path).read_bytes() == own.read_bytes()
    with zipfile.ZipFile(own) as archive:
        names = set(archive.namelist())
        files = {path for path in ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        for path in files:
            assert archive.read(path.relative_to(ROOT.parent).as_posix()) == path.read_bytes()
        info = f"anomaly-{anomaly.__version__}.dist-info"
        listed = [name for name, *_ in csv.reader(io.StringIO(archive.read(f"{info}/RECORD").decode()))]
        assert sorted(listed) == sorted(names)
        assert len(names) == len(files) + 5
    venv.create(tmp_path / "venv", with_pip=False)
    folder = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", str(folder / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--disable-pip-version-check", str(own)], check=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    output = subprocess.run([folder / "anomaly", "--version"], capture_output=True, text=True, check=True, env=env)
    assert output.stdout.strip() == anomaly.__version__
    where = subprocess.run(
        [folder / "python", "-c", "import anomaly; print(anomaly.__file__)"],
        capture_output=True, text=True, check=True, env=env, cwd=tmp_path,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(tmp_path)


def test_bundle_checks_itself_and_does_not_name_this_machine(bundle: Path) -> None:
    output = check(bundle, "--files")
    assert output.returncode == 0, output.stderr
    assert "wheels: 1 files" in output.stdout
    assert "every file matches the manifest" in output.stdout
    output = check(bundle)
    assert output.returncode == 0, output.stderr
    assert "models/model.onnx: autoencoder, golden image scores as at export on CPUExecutionProvider" in output.stdout
    assert f"anomaly {anomaly.__version__}" in output.stdout
    manifest = json.loads((bundle / "MANIFEST.json").read_text(encoding="utf-8"))
    files = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == files - {"MANIFEST.json"}
    assert {*SCRIPTS, "README.txt", "requirements.txt"} < files
    assert (bundle / "requirements.txt").read_text() == f"anomaly[serve-cpu]=={anomaly.__version__}\n"
    for name in sorted(files):
        if not name.startswith(("wheels/", "models/")):
            text = (bundle / name).read_text(encoding="utf-8")
            assert not any(word in text for word in ("://", str(Path.home()), str(bundle.parent), str(ROOT)))


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("models/model.onnx", b"other", "models/model.onnx was changed: its SHA-256 differs from the manifest"),
        ("install.sh", b"rm -r /", "install.sh was changed"),
        ("README.txt", None, "README.txt is missing: copy it again"),
        (
            "wheels/numpy-9.9-py3-none-any.whl",
            b"x",
            "wheels/numpy-9.9-py3-none-any.whl does not belong to this bundle: remove it",
        ),
        ("MANIFEST.json", b"{", "MANIFEST.json cannot be read"),
    ],
)
def test_tampered_bundle_is_reported_before_the_installation(
    file: str, data: bytes | None, message: str, bundle: Path, tmp_path: Path
) -> None:
    (bundle / file).unlink(missing_ok=True)
    if data is not None:
        (bundle / file).write_bytes(data)
    output = check(bundle, "--files")
    assert output.returncode == 1
    assert f"FAULT: {message}" in output.stderr
    if file != "install.sh" and os.name == "posix":
        env = os.environ | {"PYTHON": sys.executable}
        command = ["sh", str(bundle / "install.sh"), str(tmp_path / "new")]
        output = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert output.returncode == 1
        assert message in output.stderr
        assert not (tmp_path / "new").exists()


def test_changed_byte_of_equal_length_is_found(bundle: Path) -> None:
    wheel = next((bundle / "wheels").iterdir())
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    wheel.write_bytes(data)
    assert f"wheels/{wheel.name} was changed" in check(bundle, "--files").stderr


def test_other_interpreter_machine_and_versions_are_reported(bundle: Path) -> None:
    path = bundle / "MANIFEST.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(manifest | {"python": "3.4", "machine": "riscv"}), encoding="utf-8")
    output = check(bundle, "--files")
    assert output.returncode == 1
    assert f"this is Python {this_python()}, the bundle is for 3.4" in output.stderr
    assert "the bundle is for riscv" in output.stderr
    for name in ("numpy-0.1-py3-none-any.whl", "no_such_package-1.0-py3-none-any.whl"):
        (bundle / "wheels" / name).write_bytes(b"")
        manifest["files"][f"wheels/{name}"] = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    output = check(bundle)
    assert output.returncode == 1
    assert "is installed, the bundle has 0.1" in output.stderr
    assert "no_such_package 1.0 is not installed" in output.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_install_script_requires_a_folder(bundle: Path) -> None:
    for shell in ("bash", "sh"):
        subprocess.run([shell, "-n", str(bundle / "install.sh")], check=True)
    output = subprocess.run(["sh", str(bundle / "install.sh")], capture_output=True, text=True, check=False)
    assert output.returncode == 2
    assert "usage: sh install.sh VENV" in output.stderr


def fake_wheel(folder: Path, name: str, *requires: str) -> None:
    metadata = "\n".join(["Metadata-Version: 2.1", *(f"Requires-Dist: {one}" for one in requires), "", ""])
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.dist-info/METADATA", metadata)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Make wheels of a fictitious package with requirements that differ by machine."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    fake_wheel(
        folder, "anomaly-0.1.0", "num.py>=2", 'anomaly[serve]; extra == "serve-cpu"', 'web[fast]; extra == "serve"',
        'torch; extra == "train"', 'gpu; extra == "serve" and platform_machine == "x86_64"',
    )  # fmt: skip
    fake_wheel(folder, "num_py-2.1", 'old; python_version < "3.11"')
    fake_wheel(folder, "web-1.0", 'loop; extra == "fast"', 'slow; extra == "slow"', 'win; sys_platform == "win32"')
    fake_wheel(folder, "loop-3.0")
    fake_wheel(folder, "gpu-1.0")
    return folder


def names(found: set[str]) -> list[str]:
    return sorted(name.partition("-")[0] for name in found)


def test_requirements_follow_the_markers_of_the_target(wheels: Path) -> None:
    here = Target(python="3.11", platform="manylinux_2_28_x86_64").markers
    assert names(closure(wheels, extra="serve-cpu", markers=here)[0]) == ["anomaly", "gpu", "loop", "num_py", "web"]
    assert closure(wheels, extra="serve-cpu", markers=here)[1] == []
    needed, missing = closure(wheels, extra="serve-cpu", markers=JETSON.markers)
    assert names(needed) == ["anomaly", "loop", "num_py", "web"]
    assert missing == ["old"]
    windows = Target(python="3.12", platform="win_amd64")
    assert (windows.machine, windows.markers["platform_machine"]) == ("x86_64", "AMD64")
    assert closure(wheels, extra="serve-cpu", markers=windows.markers)[1] == ["win"]
    assert closure(wheels, extra="train", markers=here)[1] == ["torch"]
    (wheels / "num_py-2.1-py3-none-any.whl").rename(wheels / "num_py-1.9-py3-none-any.whl")
    assert closure(wheels, extra="serve-cpu", markers=here)[1] == ["num.py>=2"]


def test_requirements_of_the_target_are_downloaded_too(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def pip(arguments: list[str], **_: Any) -> None:
        calls.append(arguments)
        if "--no-deps" in arguments:
            fake_wheel(wheels, "old-1.0")

    monkeypatch.setattr("anomaly.deployment.wheels._pip", pip)
    download(wheels, own=tmp_path / "own.whl", extra="serve-cpu", target=JETSON, pinned=["numpy==2.2.6"])
    assert calls[0][-1] == f"{tmp_path / 'own.whl'}[serve-cpu]"
    assert calls[1][-2:] == ["--no-deps", "old"]
    assert names({path.name for path in wheels.iterdir()}) == ["anomaly", "loop", "num_py", "old", "web"]
    (wheels / "old-1.0-py3-none-any.whl").unlink()
    monkeypatch.setattr("anomaly.deployment.wheels._pip", lambda *_, **__: None)
    with pytest.raises(OutputError, match="the downloads do not satisfy old"):
        download(wheels, own=tmp_path / "own.whl", extra="serve-cpu", target=JETSON, pinned=[])


def test_target_gives_all_compatible_platforms_to_pip() -> None:
    assert HERE.options == []
    options = JETSON.options
    platforms = [options[n + 1] for n, word in enumerate(options) if word == "--platform"]
    assert platforms[0] == "manylinux_2_35_aarch64"
    assert {"manylinux_2_28_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64"} < set(platforms)
    assert "manylinux_2_36_aarch64" not in platforms
    assert options[-4:] == ["--python-version", "3.10", "--implementation", "cp"]
    assert (JETSON.machine, JETSON.markers["python_version"], JETSON.markers["sys_platform"]) == (
        "aarch64",
        "3.10",
        "linux",
    )
    for python, platform in (
        ("3", None),
        ("3.10.2", None),
        ("3.10", ""),
        ("3.10", "linux"),
        ("3.10", "manylinux_aarch64"),
    ):
        with pytest.raises(UsageError, match=r"write (it as 3\.10|manylinux_2_35_aarch64)"):
            Target(python=python, platform=platform)


def test_pins_follow_the_markers_of_the_target(tmp_path: Path) -> None:
    file = tmp_path / "constraints.txt"
    file.write_text(
        '# exact\nnumpy==2.4.6; python_version >= "3.11"\nnumpy==2.2.6; python_version < "3.11"\nrich==15.0.0\n'
    )
    assert pins(str(file), target=JETSON) == ["numpy==2.2.6", "rich==15.0.0"]
    assert pins(None, target=JETSON) == []
    assert any(pin.startswith("numpy==") for pin in pins(None, target=HERE))
    file.write_text("not a pin\n")
    with pytest.raises(UsageError, match="line 1: 'not a pin' is not of the form NAME==VERSION"):
        pins(str(file), target=JETSON)
    with pytest.raises(UsageError, match="cannot be read"):
        pins(str(tmp_path / "none.txt"), target=JETSON)


@pytest.fixture
def without_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Repack this package's wheel without a build backend, and clear the configuration of pip."""
    monkeypatch.setattr(bundle_module, "own_wheel", repack)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return


@pytest.mark.usefixtures("without_network")
def test_verb_includes_model_and_weights_and_writes_the_folder_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import save_file

    place = tmp_path / "weights"
    place.mkdir()
    save_file({}, place / "resnet10t.c3_in1k.safetensors")
    monkeypatch.setenv(backbones.WEIGHTS_FOLDER_VARIABLE, str(place))
    monkeypatch.setattr(bundle_module, "download", lambda folder, *, own, **_: shutil.copy(own, folder))
    folder = tmp_path / "out" / "bundle"
    command = ["bundle", str(folder), "--extra", "train", "--backbone", "resnet10t", "--model", str(model)]
    assert run(command) == 0
    assert "sh install.sh VENV" in capsys.readouterr().out
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
    (weights,) = manifest["weights"]
    assert weights["licence"] == "apache-2.0"
    assert weights["sha256"] == manifest["files"]["weights/resnet10t.c3_in1k.safetensors"]["sha256"]
    assert manifest["models"] == [{"file": "models/model.onnx"}]
    readme = (folder / "README.txt").read_text(encoding="utf-8")
    assert "licence of these weights: apache-2.0" in readme
    assert "--model.backbone resnet10t" in readme
    assert check(folder, "--files").returncode == 0
    assert run(command) == 2
    assert "is not empty: name a new folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("without_network")
def test_failed_bundle_is_reported_and_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "place" / "bundle"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        OutputError, match=r"no wheel of \S+ for Python 3\.10 on manylinux_2_35_aarch64: give --constraints"
    ):
        make_bundle(folder, extra="serve-cpu", platform=JETSON.platform, python_version="3.10", model=model)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OutputError, match="no network: pip's package registry does not answer"):
        make_bundle(folder, extra="serve-cpu", constraints=os.devnull)
    with pytest.raises(UsageError, match="give --extra train"):
        make_bundle(folder, extra="serve-cpu", backbone="resnet18")
    model.write_bytes(model.read_bytes()[:1000])
    assert run(["bundle", str(folder), "--extra", "serve-cpu", "--model", str(model)]) == 1
    assert not list(folder.parent.iterdir())
