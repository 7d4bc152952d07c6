"""How many cores this process may use, and when it lets others have them. Needs no torch."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

QUOTAS = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
"""Of a container as it sees itself: cgroups version 2, version 1."""

NICENESS, LOWEST = 5, 19
"""More than what loads have processes that compute on the CPU: a third of the weight; and Linux's largest."""


def allowed_cores() -> int:
    """Those that the process is bound to, or fewer where its container may use less time (`docker run --cpus`)."""
    quotas = [cores for cores in map(_cores_of, QUOTAS) if cores is not None]
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, quotas)]))


def step_back() -> None:
    """Lets processes that load go before this one, all threads of it, where cores do not suffice for both.

    It stays as it is where it may not.
    """
    wanted = min(LOWEST, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    with suppress(PermissionError):
        for _ in range(3):  # threads that were started meanwhile are as those that started them were
            for thread in Path("/proc/self/task").iterdir():
                _step_back(int(thread.name), wanted)


def _step_back(thread: int, wanted: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        if os.getpriority(os.PRIO_PROCESS, thread) < wanted:
            os.setpriority(os.PRIO_PROCESS, thread, wanted)


def _cores_of(quota: Path) -> float | None:
    """A quota ÷ its period; None where there is none."""
    try:
        values = quota.read_text("ascii").split()
        if len(values) == 1:
            values.append((quota.parent / "cpu.cfs_period_us").read_text("ascii").strip())
        limit, period = int(values[0]), int(values[1])  # "max" is no number
    except (OSError, ValueError, IndexError):
        return None
    return limit / period if limit > 0 and period > 0 else None
