"""Stopping a server without losing a request that it has accepted."""

import time
from collections.abc import Callable
from pathlib import Path

from ..common.draining import quiet_s

QUIET_S = 1.0
"""When no model has had anything to do for so long, nothing is in flight: between two models it is for milliseconds."""

LOOK_EVERY_S = 0.2


def wait_quiet(runtime: Path, grace_s: float, look: Callable[[], object]) -> bool:
    """Waits until a server that is draining has no requests.

    Args:
        runtime: the runtime directory of its models.
        grace_s: seconds that they may take.
        look: done meanwhile, again and again; it raises to end the wait.

    Returns:
        Whether they ended in time.
    """
    deadline = time.monotonic() + grace_s
    while quiet_s(runtime) < QUIET_S:
        if time.monotonic() > deadline:
            return False
        look()
        time.sleep(LOOK_EVERY_S)
    return True
