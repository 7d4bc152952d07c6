"""A model's process, made ready to compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..common.library_messages import silence_diffusers
from .memory import return_freed_memory

if TYPE_CHECKING:
    from .settings import ModelSettings


def prepare_torch(settings: ModelSettings) -> None:
    """Applies the process-wide choices: the parameter `threads`, no gradients, no progress bars in the server's log.

    Freed memory is returned from now on, until `keep_freed_memory`.
    """
    return_freed_memory()
    torch.set_num_threads(int(settings.parameters["threads"]))
    torch.set_grad_enabled(False)
    silence_diffusers()
