"""Private directories of launchers and servers, and removing those of killed ones."""

import contextlib
import itertools
import os
import re
import shutil
import tempfile
from pathlib import Path

from .processes import command_line, pid_namespace

_NAME = re.compile(r"swiftdiffusion[_-]\d+[_-](?P<pid>\d+)(_\w+)?")


def make_private_directory() -> Path:
    """A directory of this launcher for one server."""
    return Path(tempfile.mkdtemp(prefix=f"swiftdiffusion_{pid_namespace()}_{os.getpid()}_"))


def backends_directory(pid: int | str) -> Path:
    """Where the backends of a server keep files for each other."""
    return Path(tempfile.gettempdir()) / f"swiftdiffusion-{os.getuid()}-{pid}"


def remove_stale_directories() -> None:
    """Removes the private directories of launchers and servers that were killed."""
    temporary = Path(tempfile.gettempdir())
    owned = [temporary.glob(f"swiftdiffusion_{pid_namespace()}_*"), temporary.glob(backends_directory("*").name)]
    for path in itertools.chain.from_iterable(owned):
        match = _NAME.fullmatch(path.name)
        if match and not command_line(int(match["pid"])):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                shutil.rmtree(path)
