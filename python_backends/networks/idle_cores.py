"""Cores that nobody else uses at the moment, for a CPU model that is called while the others wait for it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

LOAD = Path("/proc/loadavg")


def idle_cores() -> int:
    """Of the cores that this process may use, those that no thread of the machine wants right now."""
    cores = len(os.sched_getaffinity(0))
    try:
        runnable = int(LOAD.read_text("ascii").split()[3].partition("/")[0])  # proc(5); the caller is one of them
    except (OSError, ValueError, IndexError):
        return 0
    return max(0, cores - runnable)


class IdleCores:
    """Runs a network on its own threads and on idle cores: a single picture to the same bits however many those are.

    PyTorch divides a VAE's operators over threads without changing a sum's order, but for convolutions of one pixel,
    for which oneDNN chooses another algorithm: these keep to the network's own threads. (Several pictures in one call
    differ in their last bits from one alone as it is.)
    """

    def __init__(self, network: torch.nn.Module) -> None:
        """Takes as the network's own threads as many as this process has set.

        Args:
            network: On the CPU; gets hooks.
        """
        self._own = torch.get_num_threads()
        self._borrowed = 0
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (1, 1):
                module.register_forward_pre_hook(lambda *_: torch.set_num_threads(self._own))
                module.register_forward_hook(lambda *_: torch.set_num_threads(self._own + self._borrowed))

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """While the network is called."""
        self._borrowed = idle_cores()
        torch.set_num_threads(self._own + self._borrowed)
        try:
            yield
        finally:
            self._borrowed = 0
            torch.set_num_threads(self._own)
