"""Where tritonserver is and what environment it needs."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import PythonVersionError, ServerBinaryNotFoundError
from .python_stub import PYTHON_VERSION, STUB, check_stub


@dataclass(frozen=True)
class ServerBinary:
    """A tritonserver that can be started.

    Attributes:
        path: the executable.
        wheel: directory of the `nvidia-pytriton` wheel's server if it is that one; None for an installed Triton,
            which brings its own backend directory and libraries.
    """

    path: Path
    wheel: Path | None = None

    @property
    def source(self) -> str:
        """Where the binary comes from, for people."""
        return "installed" if self.wheel is None else "nvidia-pytriton wheel"

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Environment of the server and, through it, of the backends' stub processes."""
        environment = dict(inherited)
        # Threads that spin while they wait take the cores that the other stubs compute on.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        environment.setdefault("TOKENIZERS_PARALLELISM", "false")
        environment.setdefault("PYTHONUNBUFFERED", "1")
        # The stub finds its packages through the first `python3` of PATH, and must load the libpython of that very
        # interpreter: with another one extension modules such as `_ssl` miss symbols.
        environment["PATH"] = _joined(str(Path(sys.executable).parent), inherited.get("PATH"))
        known, libpython = inherited.get("LD_LIBRARY_PATH"), str(sysconfig.get_config_var("LIBDIR"))
        if self.wheel is not None:
            libraries = str(self.wheel.parents[1] / "nvidia_pytriton.libs")
            environment["LD_LIBRARY_PATH"] = _joined(libpython, libraries, known)
        elif sys.base_prefix != "/usr":  # the system's is found anyway, and its directory could hide CUDA's libraries
            environment["LD_LIBRARY_PATH"] = _joined(known, libpython)
        return environment

    def check(self, inherited: Mapping[str, str]) -> None:
        """Does nothing if the server's Python backend can run this interpreter's packages.

        Args:
            inherited: the environment that `environment` adds to.

        Raises:
            PythonVersionError: it is for other Python versions.
            MissingLibraryError: it lacks a shared library, such as libpython.
        """
        stub = self.stub()
        if stub is not None:
            check_stub(stub, self.environment(inherited))
        elif self.wheel is not None:
            available = ", ".join(sorted(path.name for path in (self.wheel / "python_backend_stubs").iterdir()))
            raise PythonVersionError(
                f"nvidia-pytriton has no Python backend stub for Python {PYTHON_VERSION}; it has: {available}"
            )

    def assemble_backends(self, directory: Path) -> Path | None:
        """Makes the backend directory: Python backend plus the stub of the running Python version.

        Args:
            directory: private directory to make it in.

        Returns:
            Value for `--backend-directory`; None if the server knows its own.
        """
        stub = self.stub()
        if self.wheel is None or stub is None:
            return None
        python = directory / "backends" / "python"
        python.mkdir(parents=True)
        for source in (self.wheel / "backends" / "python").iterdir():
            if source.is_file():
                (python / source.name).symlink_to(source)
        (python / STUB).symlink_to(stub)
        return python.parent

    def stub(self) -> Path | None:
        """The Python backend's stub for the running Python version, None if it is not there."""
        if self.wheel is None:
            installed = self.path.parents[1] / "backends" / "python" / STUB
            return installed if installed.exists() else None
        stub = self.wheel / "python_backend_stubs" / PYTHON_VERSION / STUB
        return stub if stub.exists() else None

    def help(self) -> str:
        """What `tritonserver --help` prints: the options this version knows."""
        command = [str(self.path), "--help"]
        environment = self.environment(os.environ)
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        return answer.stdout + answer.stderr


def find_server_binary() -> ServerBinary:
    """$TRITONSERVER, else `tritonserver` of PATH, else the one in the nvidia-pytriton wheel.

    Raises:
        ServerBinaryNotFoundError: there is none, or $TRITONSERVER is not an executable.
    """
    configured = os.environ.get("TRITONSERVER")
    if configured:
        path = shutil.which(configured)
        if path is None:
            raise ServerBinaryNotFoundError(f"TRITONSERVER is {configured!r}, which is not an executable file")
        return ServerBinary(Path(path).resolve())
    found = shutil.which("tritonserver")
    if found:
        return ServerBinary(Path(found).resolve())
    wheel = _wheel_directory()
    if wheel is None:
        raise ServerBinaryNotFoundError(
            "no tritonserver found: `pip install nvidia-pytriton==0.7.0` (it carries one), run in NVIDIA's Triton "
            "image, or set TRITONSERVER to the executable"
        )
    return ServerBinary(wheel / "bin" / "tritonserver", wheel)


def _wheel_directory() -> Path | None:
    # Located, not imported: pytriton's API is not used and takes seconds to import.
    spec = importlib.util.find_spec("pytriton")
    for location in (spec.submodule_search_locations or []) if spec else []:
        wheel = Path(location) / "tritonserver"
        if (wheel / "bin" / "tritonserver").exists():
            return wheel
    return None


def _joined(*paths: str | None) -> str:
    return os.pathsep.join(path for path in paths if path)
