"""A private directory that the models of one server share: they are processes of their own."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

WATCH_FILE, LOOK_FILE = "watch.json", "watched"
"""What the watcher of the server tells; and, by its time, when it looked last."""

LOOKS_WITHIN_S = 15.0
"""A watcher that has looked at nothing for so long watches nothing: it may be loading a large model's file itself."""

VARIABLE = "SWIFTDIFFUSION_RUNTIME_DIRECTORY"
"""Environment variable with the directory; `swiftdiffusion serve` sets it and removes the directory at the end."""


def default_runtime_directory(server: int, temporary: str | None = None) -> Path:
    """The directory of a server that was started without the launcher.

    Args:
        server: tritonserver's process id.
        temporary: Its directory for temporary files; None: as this process's.
    """
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    return Path(temporary or tempfile.gettempdir()) / f"swiftdiffusion-{os.getuid()}-{namespace}-{server}"


def runtime_directory() -> Path:
    """The directory, made if need be.

    Without the launcher it is named after the server, which is the parent of every model's process.

    Raises:
        PermissionError: If that name exists and is not a directory of this user alone.
    """
    given = os.environ.get(VARIABLE)
    directory = Path(given) if given else default_runtime_directory(os.getppid())
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{directory} is not a directory of this user alone; remove it or set {VARIABLE}")
    return directory
