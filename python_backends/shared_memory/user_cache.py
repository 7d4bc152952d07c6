"""Where files are kept beyond a server's life. Needs no torch."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from tempfile import TemporaryFile

from ..common.runtime_directory import runtime_directory

logger = logging.getLogger(__name__)


def user_cache_directory(name: str, configured: Path | None = None) -> Path:
    """A directory of this user's, made if need be, or the server's own where nothing can be kept.

    Args:
        name: What is kept there.
        configured: Another one to be used.
    """
    try:
        directory = configured
        if directory is None:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            directory = cache / "swiftdiffusion" / name
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except (OSError, RuntimeError) as error:
        logger.warning("%s do not survive this server: %s", name, error)
        return runtime_directory() / f"{name}-disk"
    return directory
