"""The Python backend's stub: the program that runs a model's Python, one process per instance."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .errors import MissingLibraryError, PythonVersionError

PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"


def check_stub(stub: Path, environment: Mapping[str, str]) -> None:
    """Does nothing if a stub can run this interpreter's packages.

    Args:
        stub: the program.
        environment: what the server will give it.

    Raises:
        PythonVersionError: it embeds another Python version, whose extension modules are not this one's.
        MissingLibraryError: a shared library of it is not found.
    """
    version = embedded_python(stub)
    if version not in (None, PYTHON_VERSION):
        raise PythonVersionError(
            f"the server's Python backend ({stub}) runs Python {version}, but this is Python {PYTHON_VERSION}: install "
            f"swiftdiffusion in a virtual environment of Python {version}"
        )
    missing = missing_libraries(stub, environment)
    if missing:
        raise MissingLibraryError(f"the server's Python backend needs {', '.join(missing)}: {_advice(missing)}")


def embedded_python(stub: Path) -> str | None:
    """Version of the libpython that a stub is linked with, such as `3.12`; None if it names none."""
    match = re.search(rb"libpython(3\.\d+)\w*\.so", stub.read_bytes())
    return match[1].decode() if match else None


def missing_libraries(stub: Path, environment: Mapping[str, str]) -> list[str]:
    """Names of the shared libraries that the dynamic loader does not find for a stub."""
    tracing = {**environment, "LD_TRACE_LOADED_OBJECTS": "1"}  # ld.so(8): list the libraries instead of running
    answer = subprocess.run([str(stub)], env=tracing, capture_output=True, text=True, check=False, timeout=60)
    return re.findall(r"^\s*(\S+) => not found", answer.stdout, re.MULTILINE)


def _advice(missing: list[str]) -> str:
    if not any(name.startswith("libpython") for name in missing):
        return "install what brings it, or add its directory to LD_LIBRARY_PATH"
    return f"`apt install libpython{PYTHON_VERSION}`, or use a Python that was built with --enable-shared"
