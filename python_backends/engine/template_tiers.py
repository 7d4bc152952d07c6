"""Where entries are kept: in shared memory, and on disk where that is wanted. Needs no torch."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from ..backend.metrics import Counter
from ..shared_memory.host_cache import HostCache
from ..shared_memory.host_directory import host_cache_directory
from ..shared_memory.user_cache import user_cache_directory

if TYPE_CHECKING:
    from pathlib import Path

DIRECTORY = "templates"
MAX_SHARE = 0.25
"""Of the machine's shared memory, in which tensors travel too."""


def template_tiers(host_bytes: int, disk_bytes: int, disk: Path | None = None) -> tuple[HostCache, ...]:
    """The fastest first.

    Args:
        host_bytes: Most in shared memory; 0: nothing is kept.
        disk_bytes: Most on disk; 0: nothing is kept there.
        disk: Where; None for this user's cache.
    """
    if host_bytes == 0:
        return ()
    directory = host_cache_directory() / DIRECTORY
    directory.mkdir(mode=0o700, exist_ok=True)
    bound = min(host_bytes, int(MAX_SHARE * shutil.disk_usage(directory).total))
    tiers = [HostCache(directory, bound, wait_s=0.0)]
    if disk_bytes:
        tiers.append(HostCache(user_cache_directory(DIRECTORY, disk), disk_bytes, wait_s=0.0))
    return tuple(tiers)


class TemplateMetrics:
    """What becomes of entries."""

    def __init__(self, pipeline: str) -> None:
        """Opens the families.

        Args:
            pipeline: The public model.
        """
        self._pipeline = pipeline
        self._entries = Counter(
            "swiftdiffusion_template_entries_total",
            "Halves of steps written as entries of known pictures, or dropped; that went by one (hit), or lacked one",
        )
        self._sums = {
            "bytes": Counter("swiftdiffusion_template_bytes_total", "Bytes of entries of known pictures, written"),
            "waited_s": Counter(
                "swiftdiffusion_template_wait_seconds_total", "Seconds that steps waited for entries of known pictures"
            ),
        }

        for what in ("written", "dropped", "hit", "miss", *self._sums):
            self(what, 0.0)

    def __call__(self, what: str, amount: float) -> None:
        """So many halves of steps were `written` as entries or `dropped`, went by one (`hit`) or lacked one (`miss`).

        Or so many `bytes` were written, or seconds `waited_s`.
        """
        if what in self._sums:
            self._sums[what].add(amount, pipeline=self._pipeline)
        else:
            self._entries.add(amount, pipeline=self._pipeline, outcome=what)
