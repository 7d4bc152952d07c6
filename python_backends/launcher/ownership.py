"""Whose a file is: /tmp and /dev/shm are everybody's, and names there can be anybody's choice."""

import os
from collections.abc import Callable
from pathlib import Path


def is_own(path: Path, is_type: Callable[[int], bool]) -> bool:
    """Whether a path is this user's and of the right type itself; not, if it is a link or gone.

    Args:
        path: what to look at.
        is_type: `stat.S_ISREG`, `stat.S_ISDIR`.
    """
    try:
        found = path.lstat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and is_type(found.st_mode)
