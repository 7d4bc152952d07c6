"""Gets perf_analyzer: from PATH, else from PyPI into a cache, outside of the environment's own packages."""

import ctypes
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

VERSION = "2.51.0"  # newer wheels need a newer glibc, and from 2.65 on they carry no binary
_WHEEL = f"tritonclient=={VERSION}"
_BASE64, _CUDART = "libb64.so.0d", "libcudart.so.12"
_CUDART_WHEEL, _BASE64_PACKAGE = "nvidia-cuda-runtime-cu12", "libb64-0d"


class PerfAnalyzerError(Exception):
    """perf_analyzer cannot be had, or failed; the message says what to do or what it said."""


@dataclass(frozen=True)
class PerfAnalyzer:
    """A perf_analyzer that can be run; `libraries` is None if it needs no others than the system's."""

    path: Path
    libraries: Path | None = None

    def environment(self) -> dict[str, str]:
        """Environment to run it in."""
        environment = dict(os.environ)
        if self.libraries is not None:
            known = environment.get("LD_LIBRARY_PATH")
            environment["LD_LIBRARY_PATH"] = f"{self.libraries}{os.pathsep}{known}" if known else str(self.libraries)
        return environment


def find_perf_analyzer(cache: Path | None = None) -> PerfAnalyzer:
    """$PERF_ANALYZER, else `perf_analyzer` of PATH, else the one of the tritonclient wheel, fetched once.

    Args:
        cache: where to keep it; None is `swiftdiffusion/perf_analyzer-VERSION` in the user's cache directory.

    Raises:
        PerfAnalyzerError: it cannot be fetched.
    """
    installed = shutil.which(os.environ.get("PERF_ANALYZER") or "perf_analyzer")
    if installed is not None:
        return PerfAnalyzer(Path(installed))
    directory = cache or _default_cache()
    found = PerfAnalyzer(directory / "perf_analyzer", directory / "lib")
    if not found.path.exists():
        _fetch(found)
    return found


def _default_cache() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "swiftdiffusion" / f"perf_analyzer-{VERSION}"


def _fetch(target: PerfAnalyzer) -> None:
    libraries = target.path.parent / "lib"
    libraries.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.path.parent) as directory:
        temporary = Path(directory)
        for name, fetch in ((_BASE64, _fetch_base64), (_CUDART, _fetch_cudart)):
            if not (libraries / name).exists() and not _system_has(name):
                shutil.copy2(_from_server_wheel(name) or fetch(temporary), libraries / name)
        binary = _member(_download(_WHEEL, temporary), "/bin/perf_analyzer", temporary)
        binary.chmod(0o755)
        binary.replace(target.path)  # last and at once: what is there is complete


def _from_server_wheel(library: str) -> Path | None:
    """The library out of nvidia-pytriton's, where auditwheel has put a hash into its name."""
    spec = importlib.util.find_spec("pytriton")
    stem, _, version = library.partition(".so.")
    for location in (spec.submodule_search_locations or []) if spec else []:
        for path in (Path(location).parent / "nvidia_pytriton.libs").glob(f"{stem}-*.so.{version}*"):
            return path
    return None


def _fetch_cudart(temporary: Path) -> Path:
    return _member(_download(_CUDART_WHEEL, temporary), f"/{_CUDART}", temporary)


def _fetch_base64(temporary: Path) -> Path:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise PerfAnalyzerError(f"perf_analyzer needs {_BASE64}: install the system's package of libb64")
    _run(["apt-get", "download", _BASE64_PACKAGE], temporary)
    package = next(temporary.glob(f"{_BASE64_PACKAGE}*.deb"))
    _run(["dpkg-deb", "-x", package.name, "package"], temporary)
    return next((temporary / "package").rglob(_BASE64)).resolve()


def _download(requirement: str, temporary: Path) -> Path:
    logger.info("downloading %s", requirement)
    directory = Path(tempfile.mkdtemp(dir=temporary))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    _run([*pip, "--dest", str(directory), requirement], temporary)
    return next(directory.glob("*.whl"))


def _member(wheel: Path, suffix: str, temporary: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(suffix):
                return Path(archive.extract(name, temporary))
    raise PerfAnalyzerError(f"{wheel.name} holds no {suffix.rpartition('/')[2]}")


def _system_has(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _run(command: list[str], directory: Path) -> None:
    answer = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise PerfAnalyzerError(f"`{' '.join(command)}` failed:\n{answer.stderr.strip()}")
