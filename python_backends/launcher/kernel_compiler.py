"""What the Triton language compiles kernels with at run time, beside itself: each one's launcher is a program in C."""

import os
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

from .checks import Check, Status

COMPILERS = ("gcc", "clang")
"""As `triton.runtime.build` looks for one, where the variable CC names none."""


def check_kernel_compiler(models: str, environment: Mapping[str, str] | None = None) -> Iterator[Check]:
    """A check for the C compiler, and one for the headers of the Python that runs.

    Args:
        models: What is on a GPU.
        environment: Variables that the server gets; None: this process's.
    """
    yield _compiler(models, os.environ if environment is None else environment)
    yield _headers(models)


def _compiler(models: str, environment: Mapping[str, str]) -> Check:
    named, path = environment.get("CC"), environment.get("PATH")
    candidates = COMPILERS if named is None else (named,)
    found = next(filter(None, (shutil.which(each, path=path) for each in candidates)), None)
    if found is not None:
        return Check("C compiler", Status.OK, f"{found}, for {models}")
    advice = "kernels are compiled when models load: `apt install gcc`, or set CC to a compiler's path"
    what = "none" if named is None else f"CC is {named}, which is no program"
    return Check("C compiler", Status.MISSING, f"{what}; wanted by {models}", advice)


def _headers(models: str) -> Check:
    scheme = sysconfig.get_default_scheme()
    paths = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)  # the former is Debian's own
    header = Path(paths["include"]) / "Python.h"
    if header.is_file():
        return Check("Python.h", Status.OK, str(header))
    version = sysconfig.get_python_version()
    advice = f"kernels are compiled when models load: `apt install python{version}-dev`, or a Python that brings it"
    return Check("Python.h", Status.MISSING, f"{header} is not there; wanted by {models}", advice)
