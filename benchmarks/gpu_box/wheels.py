"""Wheels of what a machine lacks: downloaded for it, with what they need in turn."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterable
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

PLATFORMS = tuple(f"manylinux{each}_x86_64" for each in ("_2_35", "_2_28", "_2_27", "_2_17", "2014", "1"))
Present = dict[str, Version | None]
"""Packages by canonical name; None for a version that is not known: it fits."""


class WheelError(Exception):
    """No wheel meets a requirement, or not that and another."""


def read_present(text: str) -> Present:
    """Packages as `pip freeze` lists them, or bare names; what follows a `#` is a remark."""
    entries = [entry.partition("==") for line in text.splitlines() for entry in line.partition("#")[0].split()]
    return {canonicalize_name(name): Version(version) if version else None for name, _, version in entries}


class Wheels:
    """A directory of wheels for an x86-64 machine with Linux.

    Attributes:
        directory: Made if it is not there.
        has: What is there or carried.
        python: The machine's Python, such as 3.12.
    """

    def __init__(self, directory: Path, present: Present, python: str) -> None:
        self.directory, self.has, self.python = directory, dict(present), python
        self._carried: set[str] = set()
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, requirement: Requirement, platforms: Iterable[str] = PLATFORMS) -> None:
        """Carries what meets a requirement, and what that needs, as far as the machine lacks it.

        Raises:
            WheelError: There is none, or it does not fit what is carried.
        """
        name = canonicalize_name(requirement.name)
        if name in self.has:
            version = self.has[name]
            if version is None or requirement.specifier.contains(version, prereleases=True):
                return
            if name in self._carried:
                raise WheelError(f"{name} {version} is carried; wanted too: {requirement}")
        wheel = self.fetch(requirement, platforms)
        self.has[name] = parse_wheel_filename(wheel.name)[1]
        self._carried.add(name)
        with zipfile.ZipFile(wheel) as files:
            metadata = next(each for each in files.namelist() if each.endswith(".dist-info/METADATA"))
            headers = HeaderParser().parsestr(files.read(metadata).decode())
        machine = {"python_version": self.python, "python_full_version": f"{self.python}.0"}
        for needed in map(Requirement, headers.get_all("Requires-Dist", [])):
            cases = [machine | {"extra": extra} for extra in ("", *requirement.extras)]
            if needed.marker is None or any(map(needed.marker.evaluate, cases)):
                self.add(needed)

    def fetch(self, requirement: Requirement, platforms: Iterable[str] = PLATFORMS) -> Path:
        """Downloads a wheel alone.

        Raises:
            WheelError: There is none.
        """
        before = set(self.directory.iterdir())
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--implementation=cp", f"--python-version={self.python}", f"--dest={self.directory}"]
        command += [f"--platform={platform}" for platform in platforms]
        wanted = f"{requirement.name}{requirement.specifier}"
        done = subprocess.run([*command, wanted], capture_output=True, text=True, check=False)
        if done.returncode:
            raise WheelError(f"no wheel of {wanted}: {done.stderr.strip()[-500:]}")
        (wheel,) = set(self.directory.iterdir()) - before
        return wheel
