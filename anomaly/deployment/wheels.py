"""Wheels for a machine without a network: our own, and by pip all others.

pip asks the markers of requirements (`; python_version < "3.11"`) of the interpreter that it runs in, whatever the target.
What the target's own markers ask for is therefore found here, by walking the requirements in the wheels: what lacks is
fetched after, what the target never asks for is taken out again.
"""

from __future__ import annotations

import base64
import email
import hashlib
import importlib.metadata
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

import anomaly
from anomaly.errors import OutputError, UsageError

PACKAGE = "anomaly"
_OLDEST_GLIBC, _LEGACY = 5, {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
_TARGET = re.compile(r"(?P<system>manylinux_2_(?P<glibc>\d+)|win)_(?P<machine>x86_64|aarch64|amd64|arm64)")
_NO_NETWORK = ("name resolution", "getaddrinfo", "NewConnectionError", "Connection refused", "Network is unreachable")


@dataclass(frozen=True)
class Target:
    """The machine that wheels are for; platform is empty where it is this one, and python is this interpreter's then.

    Raises:
        UsageError: a platform or version that is none.
    """

    python: str
    platform: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d+", self.python):
            raise UsageError(f"Python version {self.python!r}: write it as 3.10")
        if self.platform and not _TARGET.fullmatch(self.platform):
            raise UsageError(
                f"platform {self.platform!r}: write manylinux_2_35_aarch64, where the machine has glibc 2.35,"
                " manylinux_2_28_x86_64, or win_amd64"
            )

    @property
    def machine(self) -> str:
        """Its processor: x86_64 or aarch64."""
        name = self.platform.partition("_")[2] if self.platform.startswith("win") else self.platform
        name = name or platform.machine().lower()
        return "aarch64" if name.endswith(("aarch64", "arm64")) else "x86_64" if name.endswith(("64",)) else name

    @property
    def options(self) -> list[str]:
        """What pip is told of it."""
        python = ["--python-version", self.python, "--implementation", "cp"]
        if not self.platform:
            return python if self.python != this_python() else []
        found = _TARGET.fullmatch(self.platform)
        assert found is not None
        tags = [self.platform]
        if found["glibc"]:
            for glibc in range(int(found["glibc"]), _OLDEST_GLIBC - 1, -1):
                tags += [f"manylinux_2_{glibc}_{found['machine']}"]
                tags += [f"{_LEGACY[glibc]}_{found['machine']}"] if glibc in _LEGACY else []
        named = [option for tag in dict.fromkeys(tags) for option in ("--platform", tag)]
        return [*named, *python]

    @property
    def markers(self) -> dict[str, str]:
        """What its interpreter says to the markers of requirements."""
        python = {"python_version": self.python, "python_full_version": f"{self.python}.0"}
        if not self.platform:
            here = {key: str(value) for key, value in default_environment().items()}
            return here if self.python == this_python() else here | python
        windows = self.platform.startswith("win")
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "nt" if windows else "posix",
            "platform_machine": self.platform.rpartition("win_")[2].upper() if windows else self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Windows" if windows else "Linux",
            "platform_version": "",
            "sys_platform": "win32" if windows else "linux",
            **python,
        }


def this_python() -> str:
    """Version of this interpreter, as 3.11."""
    return ".".join(platform.python_version_tuple()[:2])


def own_wheel(folder: Path) -> Path:
    """Make this package's wheel: built where it runs from a source tree, repacked where it was installed from a wheel.

    A source tree is built anew, for what was said of it when it was installed may be out of date.

    Raises:
        OutputError: as `repack`, or a source tree that cannot be built; pip fetches its build backend for that.
    """
    source = Path(anomaly.__file__).resolve().parents[1]
    if not (source / "pyproject.toml").is_file():
        return repack(folder)
    _pip(["wheel", "--no-deps", "--wheel-dir", str(folder), str(source)], where="this package")
    (wheel,) = folder.glob(f"{PACKAGE}-*.whl")
    return wheel


def repack(folder: Path) -> Path:
    """Write this package as a wheel from the very files that run here and what its installation says of it.

    It is pure Python, so the files are the wheel: nothing is built, no network is used, and equal files give equal bytes.

    Raises:
        OutputError: the package is not installed, or is of another version than its files.
    """
    try:
        installed = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise OutputError(f"{PACKAGE} runs from files that are not installed: pip install -e . first") from error
    if installed.version != anomaly.__version__:
        raise OutputError(
            f"{PACKAGE} {anomaly.__version__} runs here, and {installed.version} is installed: install it again"
        )
    root = Path(anomaly.__file__).resolve().parent
    info = f"{PACKAGE}-{installed.version}.dist-info"
    files = {
        path.relative_to(root.parent).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    for name in ("METADATA", "entry_points.txt", "licenses/LICENSE"):
        text = installed.read_text(name)
        if text is None:
            raise OutputError(f"the installation of {PACKAGE} has no {name}: install it again")
        files[f"{info}/{name}"] = text.encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: anomaly offline\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = [f"{name},{_record(data)},{len(data)}\n" for name, data in files.items()]
    files[f"{info}/RECORD"] = ("".join(record) + f"{info}/RECORD,,\n").encode()
    wheel = folder / f"{PACKAGE}-{installed.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980: a date would be another wheel each time
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return wheel


def _record(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def pins(constraints: str, *, target: Target) -> list[str]:
    """Give the exact versions to take, as NAME==VERSION.

    Args:
        constraints: a file of them, whose markers are asked of the target; empty takes what is installed here, where the
            target is this interpreter, and no pins for another.
        target: that the wheels are for.

    Raises:
        UsageError: the file cannot be read, or a line of it is none.
    """
    if not constraints:
        if target.platform or target.python != this_python():
            return []
        found = {canonicalize_name(d.name): d.version for d in importlib.metadata.distributions() if d.name}
        return [f"{name}=={version}" for name, version in sorted(found.items()) if name != PACKAGE]
    chosen = []
    try:
        lines = Path(constraints).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--constraints {constraints} cannot be read ({error}): name a file of NAME==VERSION"
        ) from error
    for number, line in enumerate(lines, start=1):
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        try:
            wanted = Requirement(text)
        except InvalidRequirement as error:
            raise UsageError(f"--constraints {constraints}, line {number}: {text!r} is no NAME==VERSION") from error
        if wanted.marker is None or wanted.marker.evaluate({**target.markers, "extra": ""}):
            chosen.append(f"{wanted.name}{wanted.specifier}")
    return chosen


def download(folder: Path, *, own: Path, extra: str, target: Target, pinned: Sequence[str]) -> None:
    """Fetch all wheels that the target needs, our own among them, into a folder.

    Raises:
        OutputError: no network, a package that has no wheel for the target, or no pip here.
    """
    constraints = folder.with_name("constraints.txt")
    constraints.write_text("".join(f"{pin}\n" for pin in pinned), encoding="utf-8")
    _pip_download([f"{own}[{extra}]"], folder, constraints=constraints, target=target)
    needed, lacking = closure(folder, extra=extra, markers=target.markers)
    while lacking:
        _pip_download(["--no-deps", *lacking], folder, constraints=constraints, target=target)
        before, (needed, lacking) = lacking, closure(folder, extra=extra, markers=target.markers)
        if lacking == before:
            raise OutputError(f"what was fetched does not satisfy {', '.join(lacking)}: give --constraints that agree")
    constraints.unlink()
    for wheel in folder.iterdir():
        if wheel.name not in needed:
            wheel.unlink()


def closure(folder: Path, *, extra: str, markers: Mapping[str, str]) -> tuple[set[str], list[str]]:
    """Walk the requirements of our wheel through the wheels in a folder.

    Args:
        folder: of wheels.
        extra: of our own package.
        markers: what the target says to markers.

    Returns:
        Names of the wheels that are reached, and requirements that no wheel satisfies.
    """
    wheels = {}
    for path in sorted(folder.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(path.name)
        wheels[name] = (path, version, _requirements(path))
    needed: set[str] = set()
    lacking: dict[str, None] = {}
    waiting = [Requirement(f"{PACKAGE}[{extra}]")]
    seen = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        found = wheels.get(name)
        if found is None or not wanted.specifier.contains(found[1], prereleases=True):
            lacking[f"{wanted.name}{wanted.specifier}"] = None
            continue
        needed.add(found[0].name)
        for chosen in ("", *sorted(wanted.extras)):
            if (name, chosen) not in seen:
                seen.add((name, chosen))
                waiting += [
                    one
                    for one in found[2]
                    if (one.marker is None and not chosen)
                    or (one.marker is not None and one.marker.evaluate({**markers, "extra": chosen}))
                ]
    return needed, list(lacking)


def _requirements(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
        metadata: Message = email.message_from_bytes(archive.read(name))
    return [Requirement(text) for text in metadata.get_all("Requires-Dist") or []]


def _pip_download(wanted: list[str], folder: Path, *, constraints: Path, target: Target) -> None:
    options = ["--only-binary", ":all:", "--dest", str(folder), "--constraint", str(constraints), *target.options]
    _pip(["download", *options, *wanted], where=f"Python {target.python} on {target.platform or 'this machine'}")


def _pip(words: list[str], *, where: str) -> None:
    """Run pip, whose registry and mirrors are those that it is set to here."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        return
    said = done.stderr.strip()
    if any(word in said for word in _NO_NETWORK):
        raise OutputError("no network: the package registry that pip is set to does not answer; run this where it does")
    if found := re.search(r"No matching distribution found for ([^\s;(]+)", said):
        raise OutputError(
            f"no wheel of {found[1]} for {where}: give --constraints with a version that has one, a newer glibc in"
            " --platform, or another --extra (serve, where the vendor brings ONNX Runtime)"
        )
    if "ResolutionImpossible" in said:
        raise OutputError(
            f"the pinned versions do not go together for {where} ({said.splitlines()[0]}):"
            " give --constraints with some that do"
        )
    raise OutputError(f"pip cannot fetch the wheels for {where}: {said.splitlines()[-1] if said else done.returncode}")
