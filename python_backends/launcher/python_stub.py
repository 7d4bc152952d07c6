"""The Python backend's stub: the program that runs a model's Python, one process per instance."""

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .errors import MissingLibraryError, NumpyVersionError, PythonVersionError, StubPermissionError

PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"


def check_stub(stub: Path, environment: Mapping[str, str]) -> None:
    """Does nothing if a stub can run this interpreter's packages.

    Args:
        stub: the program.
        environment: what the server will give it.

    Raises:
        StubPermissionError: this user may not run it.
        PythonVersionError: it embeds another Python version, whose extension modules are not this one's.
        MissingLibraryError: a shared library of it is not found.
        NumpyVersionError: it is too old for the installed numpy.
    """
    version = embedded_python(stub)
    if version not in (None, PYTHON_VERSION):
        raise PythonVersionError(
            f"the server's Python backend ({stub}) runs Python {version}, but this is Python {PYTHON_VERSION}: install "
            f"swiftdiffusion in a virtual environment of Python {version}"
        )
    if not os.access(stub, os.X_OK):
        raise StubPermissionError(f"{stub} may not be run by this user: `chmod a+rx` it, as its owner")
    missing = missing_libraries(stub, environment)
    if missing:
        raise MissingLibraryError(f"the server's Python backend needs {', '.join(missing)}: {_advice(missing)}")
    check_numpy(stub, importlib.metadata.version("numpy"))


def check_numpy(stub: Path, installed: str) -> None:
    """Does nothing if a stub can read tensors of a numpy version.

    pybind11 does from 2.12 on, where it looks numpy's core up by its new name; Triton's Python backend has that since
    24.11. An older one ends at the first BYTES tensor.

    Raises:
        NumpyVersionError: it cannot.
    """
    if int(installed.partition(".")[0]) >= 2 and (content := _content(stub)) and b"numpy._core" not in content:
        raise NumpyVersionError(
            f"numpy {installed} is installed, for which the server's Python backend ({stub}) is too old; wanted: "
            "`pip install 'numpy<2'`, or Triton 24.11 or newer"
        )


def embedded_python(stub: Path) -> str | None:
    """Version of the libpython that a stub is linked with, such as `3.12`; None if it names none."""
    match = re.search(rb"libpython(3\.\d+)\w*\.so", _content(stub))
    return match[1].decode() if match else None


def _content(stub: Path) -> bytes:
    """Nothing, where a user may run it but not read it: pip installs the wheel's so."""
    try:
        return stub.read_bytes()
    except PermissionError:
        return b""


def missing_libraries(stub: Path, environment: Mapping[str, str]) -> list[str]:
    """Names of the shared libraries that the dynamic loader does not find for a stub."""
    tracing = {**environment, "LD_TRACE_LOADED_OBJECTS": "1"}  # ld.so(8): list the libraries instead of running
    answer = subprocess.run([str(stub)], env=tracing, capture_output=True, text=True, check=False, timeout=60)
    return re.findall(r"^\s*(\S+) => not found", answer.stdout, re.MULTILINE)


def _advice(missing: list[str]) -> str:
    if not any(name.startswith("libpython") for name in missing):
        return "install what brings it, or add its directory to LD_LIBRARY_PATH"
    return f"`apt install libpython{PYTHON_VERSION}`, or use a Python that was built with --enable-shared"
