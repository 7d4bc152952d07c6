"""A GPU's networks on a CPU: fused modules, as they are or recorded on tapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from unittest.mock import patch

from swiftdiffusion.python_backends.networks import runtimes
from swiftdiffusion.python_backends.networks.fused_modules import fuse
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from tape import Tape

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class FusedRuntime(Runtime):
    """As on a GPU, but for the layout: that costs roundings of its own."""

    def prepare(self, network: torch.nn.Module, device: torch.device) -> None:
        fuse(network, self.savings)


def on_tape(make: Callable[[], T]) -> T:
    """What is made while networks on the CPU are captured on tapes."""
    with patch.dict(runtimes.RECORDERS, {"cpu": Tape}):
        return make()
