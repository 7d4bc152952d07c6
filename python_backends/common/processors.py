"""How many cores this process may use, and when it lets others have them. Needs no torch."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

QUOTAS = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
"""Of a container as it sees itself: cgroups version 2, version 1."""

NICENESS = 5
"""Of processes that compute on the CPU, once they are loaded: a third of the weight of those that load."""


def allowed_cores() -> int:
    """Those that the process is bound to, or fewer where its container may use less time (`docker run --cpus`)."""
    quotas = [cores for cores in map(_cores_of, QUOTAS) if cores is not None]
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, quotas)]))


def step_back() -> None:
    """Lets processes that load go before this one, all threads of it, where cores do not suffice for both."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, int(thread.name), NICENESS)


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
