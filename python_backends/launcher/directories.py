"""Private directories of launchers, one per server, and removing those of killed ones."""

import logging
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from ..common.runtime_directory import VARIABLE as RUNTIME_VARIABLE
from .ownership import is_own
from .processes import any_has_variable, command_line, pid_namespace

logger = logging.getLogger(__name__)

_NAME = re.compile(r"swiftdiffusion_\d+_(?P<pid>\d+)_\w+")


def make_private_directory() -> Path:
    """A directory of this launcher for one server, only for this user."""
    return Path(tempfile.mkdtemp(prefix=f"swiftdiffusion_{pid_namespace()}_{os.getpid()}_"))


def make_runtime_directory(private: Path) -> Path:
    """Where the backends of a server keep files for each other, inside the server's private directory."""
    runtime = private / "runtime"
    runtime.mkdir(mode=0o700)
    return runtime


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
