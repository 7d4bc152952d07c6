"""Cores that nobody else uses at the moment, for a CPU model that is called while the others wait for it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..common.processors import allowed_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

LOAD = Path("/proc/loadavg")

LOOK_AGAIN_S = 0.01

MOST_THREADS = 4
"""Of one call. From eight on, oneDNN sums convolutions of small pictures in another order."""


def idle_cores() -> int:
    """Of the cores that this process may use, those that no thread of the machine wants right now."""
    try:
        runnable = int(LOAD.read_text("ascii").split()[3].partition("/")[0])  # proc(5); the caller is one of them
    except (OSError, ValueError, IndexError):
        return 0
    return max(0, allowed_cores() - runnable)


class IdleCores:
    """Runs a network's larger convolutions on idle cores too: a single picture to the same bits however many those are.

    Convolutions of 3 × 3 are nine tenths of a VAE's time, and each of their values is summed by one thread. The rest
    keeps to the network's own threads: how many there are decides which values vector instructions compute, and how
    oneDNN makes convolutions of one pixel. (Several pictures in one call differ in their last bits from one as it is.)
    """

    def __init__(self, network: torch.nn.Module) -> None:
        """Takes as the network's own threads as many as this process has set.

        Args:
            network: On the CPU; gets hooks.
        """
        self._own = self._threads = torch.get_num_threads()
        self._looked = 0.0
        self._borrows = False
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d) and max(module.kernel_size) > 1:
                module.register_forward_pre_hook(lambda *_: torch.set_num_threads(self._threads_now()))
                module.register_forward_hook(lambda *_: torch.set_num_threads(self._own), always_call=True)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """While the network is called."""
        self._borrows = True
        try:
            yield
        finally:
            self._borrows = False

    def _threads_now(self) -> int:
        """Looked at again in a long call: who has just handed the work over may be busy for a moment."""
        if not self._borrows:
            return self._own
        now = time.monotonic()
        if now - self._looked > LOOK_AGAIN_S:
            self._looked = now
            self._threads = max(self._own, min(self._own + idle_cores(), MOST_THREADS))
        return self._threads
