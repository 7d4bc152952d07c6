"""Private directories of launchers, one per server, and removing those of killed ones."""

import logging
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from ..common.filesystem import is_plain
from ..common.runtime_directory import VARIABLE as RUNTIME_VARIABLE
from .errors import TemporaryDirectoryError
from .ownership import is_own
from .processes import any_has_variable, command_line, pid_namespace

logger = logging.getLogger(__name__)

PORT_FILE = "http-port"
"""In the private directory: where its server listens."""

TRITON_TEMPORARY = Path("/tmp")

_NAME = re.compile(r"swiftdiffusion_\d+_(?P<pid>\d+)_\w+")


def make_private_directory() -> Path:
    """A directory of this launcher for one server, only for this user.

    Raises:
        TemporaryDirectoryError: the server could not use it.
    """
    if not os.access(TRITON_TEMPORARY, os.W_OK | os.X_OK):
        raise TemporaryDirectoryError(
            f"{TRITON_TEMPORARY} cannot be written, where Triton's Python backend makes a directory whatever TMPDIR "
            "says; mount one there that can (in Kubernetes: an emptyDir)"
        )
    parent = Path(tempfile.gettempdir())
    if not is_plain(parent):
        raise TemporaryDirectoryError(
            f"the directory for temporary files is {str(parent)!r}, which Triton's Python backend cannot use; "
            "wanted: a TMPDIR of letters, digits and @%+=:,./_- alone"
        )
    return Path(tempfile.mkdtemp(prefix=f"swiftdiffusion_{pid_namespace()}_{os.getpid()}_"))


def make_runtime_directory(private: Path) -> Path:
    """Where the backends of a server keep files for each other, inside the server's private directory."""
    runtime = private / "runtime"
    runtime.mkdir(mode=0o700, exist_ok=True)
    return runtime


def private_directories() -> list[Path]:
    """Those of launchers that live, of this user."""
    found = Path(tempfile.gettempdir()).glob(f"swiftdiffusion_{pid_namespace()}_*")
    return [path for path in found if is_private(path) and is_own(path, stat.S_ISDIR)]


def is_private(path: Path) -> bool:
    """Whether a directory has the name of one that a launcher made."""
    return _NAME.fullmatch(path.name) is not None


def plain_path(path: Path, private: Path) -> Path:
    """The path itself, or a link to it in a private directory where Triton's Python backend could not use it."""
    if is_plain(path):
        return path
    link = private / "repository"
    link.symlink_to(path)
    return link


def remove_stale_directories() -> None:
    """Removes this user's private directories whose launcher was killed and whose server is gone too."""
    for path in Path(tempfile.gettempdir()).glob(f"swiftdiffusion_{pid_namespace()}_*"):
        match = _NAME.fullmatch(path.name)
        if match is None or command_line(int(match["pid"])) or not is_own(path, stat.S_ISDIR):
            continue
        if any_has_variable(RUNTIME_VARIABLE, str(path / "runtime")):
            continue
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            logger.debug("%s is removed by another launcher", path)
        except OSError as error:
            logger.warning("%s stays: %s", path, error)
