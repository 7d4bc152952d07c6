"""Which of PyTorch's two dense layouts a tensor has."""

from __future__ import annotations

import torch


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether x is channels-last, [N, H, W, C] in memory, and could not as well be contiguous."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def dense_format(x: torch.Tensor) -> torch.memory_format:
    """Channels-last if x is, else contiguous: what ops bring their inputs to, and give their outputs."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format
