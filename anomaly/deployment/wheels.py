"""Wheels for a machine without a network: the wheel of this package, and downloads by pip.

pip evaluates the markers of requirements (`; python_version < "3.11"`) for its own interpreter, not for the target. This
module therefore walks the requirements in the wheels with the target's markers. It downloads the missing wheels and removes
the unneeded ones.
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
    """Python version and platform of the wheels.

    Raises:
        UsageError: an invalid platform or version.
    """

    python: str
    """version, e.g. 3.10"""
    platform: str | None = None
    """tag of pip; None for this machine"""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d+", self.python):
            raise UsageError(f"Python version {self.python!r}: write it as 3.10")
        if self.platform is not None and not _TARGET.fullmatch(self.platform):
            raise UsageError(
                f"platform {self.platform!r}: write manylinux_2_35_aarch64 (for glibc 2.35), manylinux_2_28_x86_64,"
                " or win_amd64"
            )

    @property
    def machine(self) -> str:
        """Processor: x86_64 or aarch64."""
        name = (self.platform or platform.machine().lower()).removeprefix("win_")
        return "aarch64" if name.endswith(("aarch64", "arm64")) else "x86_64" if name.endswith(("64",)) else name

    @property
    def options(self) -> list[str]:
        """Options of pip for this target."""
        python = ["--python-version", self.python, "--implementation", "cp"]
        if self.platform is None:
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
        """Values of its interpreter for the markers of requirements."""
        python = {"python_version": self.python, "python_full_version": f"{self.python}.0"}
        if self.platform is None:
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
    """Return the version of this interpreter, e.g. 3.11."""
    return ".".join(platform.python_version_tuple()[:2])


def own_wheel(folder: Path) -> Path:
    """Make this package's wheel: built from a source tree, repacked from an installed wheel.

    A source tree is always built, because its installed metadata may be out of date.

    Raises:
        OutputError: as in `repack`, or a failed build; pip downloads the build backend.
    """
    source = Path(anomaly.__file__).resolve().parents[1]
    if not (source / "pyproject.toml").is_file():
        return repack(folder)
    _pip(["wheel", "--no-deps", "--wheel-dir", str(folder), str(source)], where="this package")
    (wheel,) = folder.glob(f"{PACKAGE}-*.whl")
    return wheel


def repack(folder: Path) -> Path:
    """Write this package as a wheel, from the files that run here and the metadata of their installation.

    The package is pure Python, so nothing is built and no network is used. Equal files give equal bytes.

    Raises:
        OutputError: the package is not installed, or its files have another version than the installation.
    """
    try:
        installed = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise OutputError(f"{PACKAGE} is not installed: run `pip install -e .` first") from error
    if installed.version != anomaly.__version__:
        raise OutputError(
            f"the files of {PACKAGE} have version {anomaly.__version__}, the installation has {installed.version}:"
            " install it again"
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
            raise OutputError(f"{name} is missing in the installation of {PACKAGE}: install it again")
        files[f"{info}/{name}"] = text.encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: anomaly bundle\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = [f"{name},{_record(data)},{len(data)}\n" for name, data in files.items()]
    files[f"{info}/RECORD"] = ("".join(record) + f"{info}/RECORD,,\n").encode()
    wheel = folder / f"{PACKAGE}-{installed.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # dated 1980, so that equal files give an equal wheel
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return wheel


def _record(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def pins(constraints: str | Path | None, *, target: Target) -> list[str]:
    """Return the exact versions to download, as NAME==VERSION.

    Args:
        constraints: file of exact versions, whose markers are evaluated for the target. None takes the versions installed
            here, and no versions for another target.
        target: platform and Python of the wheels.

    Raises:
        UsageError: a file that cannot be read, or an invalid line.
    """
    if constraints is None:
        if target.platform or target.python != this_python():
            return []
        found = {canonicalize_name(d.name): d.version for d in importlib.metadata.distributions() if d.name}
        return [f"{name}=={version}" for name, version in sorted(found.items()) if name != PACKAGE]
    chosen = []
    try:
        lines = Path(constraints).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--constraints {constraints} cannot be read ({error}): give a file of lines NAME==VERSION"
        ) from error
    for number, line in enumerate(lines, start=1):
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise UsageError(
                f"--constraints {constraints}, line {number}: {text!r} is not of the form NAME==VERSION"
            ) from error
        if requirement.marker is None or requirement.marker.evaluate({**target.markers, "extra": ""}):
            chosen.append(f"{requirement.name}{requirement.specifier}")
    return chosen


def download(folder: Path, *, own: Path, extra: str, target: Target, pinned: Sequence[str]) -> None:
    """Download all wheels of the target into a folder.

    Args:
        folder: output folder.
        own: wheel of this package, which is copied into the folder too.
        extra: extra of this package.
        target: platform and Python of the wheels.
        pinned: exact versions, NAME==VERSION.

    Raises:
        OutputError: no network, a package without a wheel for the target, or no pip.
    """
    constraints = folder.with_name("constraints.txt")
    constraints.write_text("".join(f"{pin}\n" for pin in pinned), encoding="utf-8")
    _pip_download([f"{own}[{extra}]"], folder, constraints=constraints, target=target)
    needed, missing = closure(folder, extra=extra, markers=target.markers)
    while missing:
        _pip_download(["--no-deps", *missing], folder, constraints=constraints, target=target)
        before, (needed, missing) = missing, closure(folder, extra=extra, markers=target.markers)
        if missing == before:
            raise OutputError(f"the downloads do not satisfy {', '.join(missing)}: give consistent --constraints")
    constraints.unlink()
    for wheel in folder.iterdir():
        if wheel.name not in needed:
            wheel.unlink()


def closure(folder: Path, *, extra: str, markers: Mapping[str, str]) -> tuple[set[str], list[str]]:
    """Walk the requirements of this package's wheel through the wheels in a folder.

    Args:
        folder: folder of wheels.
        extra: extra of this package.
        markers: values of the target for markers.

    Returns:
        The names of the needed wheels, and the requirements that no wheel satisfies.
    """
    wheels = {}
    for path in sorted(folder.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(path.name)
        wheels[name] = (path, version, _requirements(path))
    needed: set[str] = set()
    missing: dict[str, None] = {}
    pending = [Requirement(f"{PACKAGE}[{extra}]")]
    seen = set()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        found = wheels.get(name)
        if found is None or not requirement.specifier.contains(found[1], prereleases=True):
            missing[f"{requirement.name}{requirement.specifier}"] = None
            continue
        needed.add(found[0].name)
        for chosen in ("", *sorted(requirement.extras)):
            if (name, chosen) not in seen:
                seen.add((name, chosen))
                pending += [
                    one
                    for one in found[2]
                    if (one.marker is None and not chosen)
                    or (one.marker is not None and one.marker.evaluate({**markers, "extra": chosen}))
                ]
    return needed, list(missing)


def _requirements(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
        metadata: Message = email.message_from_bytes(archive.read(name))
    return [Requirement(text) for text in metadata.get_all("Requires-Dist") or []]


def _pip_download(requirements: list[str], folder: Path, *, constraints: Path, target: Target) -> None:
    options = ["--only-binary", ":all:", "--dest", str(folder), "--constraint", str(constraints), *target.options]
    _pip(["download", *options, *requirements], where=f"Python {target.python} on {target.platform or 'this machine'}")


def _pip(arguments: list[str], *, where: str) -> None:
    """Run pip with its own configuration of registries."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if not finished.returncode:
        return
    errors = finished.stderr.strip()
    if any(text in errors for text in _NO_NETWORK):
        raise OutputError("no network: pip's package registry does not answer; run this on a machine with a network")
    if found := re.search(r"No matching distribution found for ([^\s;(]+)", errors):
        raise OutputError(
            f"no wheel of {found[1]} for {where}: give --constraints with another version, a newer glibc in"
            " --platform, or another --extra (serve for a vendor's ONNX Runtime)"
        )
    if "ResolutionImpossible" in errors:
        raise OutputError(
            f"the pinned versions conflict for {where} ({errors.splitlines()[0]}): give consistent --constraints"
        )
    last = errors.splitlines()[-1] if errors else f"exit code {finished.returncode}"
    raise OutputError(f"pip cannot download the wheels for {where}, give other --constraints: {last}")
