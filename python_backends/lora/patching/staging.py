"""Mapped files to a GPU by way of pinned memory, which its copy engine reads by itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..files.canonical import Group

PIECE_BYTES, PIECES, THREADS = 2**23, 8, 4
"""Size and number of the pinned pieces, and threads that fill them: one reads less of memory than a GPU takes."""


@dataclass(frozen=True)
class _Piece:
    """Pinned memory: uint8 [bytes], and when the last transfer from it has ended; no event on the CPU."""

    memory: torch.Tensor
    sent: torch.cuda.Event | None


class Staging:
    """Sends LoRAs to a device: while some pieces travel, others are filled. Any number of threads may send.

    Attributes:
        device: The device.
    """

    def __init__(self, device: torch.device, piece_bytes: int = PIECE_BYTES) -> None:
        """Takes PIECES pieces of memory, pinned for a GPU."""
        self.device, self._piece_bytes = device, piece_bytes
        on_gpu = device.type == "cuda"
        self._free: SimpleQueue[_Piece] = SimpleQueue()
        for _ in range(PIECES):
            memory = torch.empty(piece_bytes, dtype=torch.uint8, pin_memory=on_gpu)
            self._free.put(_Piece(memory, torch.cuda.Event(blocking=True) if on_gpu else None))
        self._threads = ThreadPoolExecutor(THREADS, "lora-staging")

    def send(self, groups: Sequence[Group]) -> list[Group]:
        """Copies on the device, made in the order of the current stream; of what is on a GPU already, the same.

        What was given has been read when this returns.
        """
        tensors = [tensor for group in groups for tensor in group.tensors.values()]
        sent = [
            tensor if tensor.is_cuda else torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
            for tensor in tensors
        ]
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        copies = [
            self._threads.submit(self._copy, source, target, stream)
            for tensor, made in zip(tensors, sent, strict=True)
            if tensor is not made
            for source, target in zip(self._pieces(tensor), self._pieces(made), strict=True)
        ]
        wait(copies)  # all of them, before a failure lets go of what others still copy from and to
        for copy in copies:
            copy.result()
        found = iter(sent)
        return [replace(group, tensors={name: next(found) for name in group.tensors}) for group in groups]

    def _pieces(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Its bytes; views, if it has no gaps."""
        return tensor.contiguous().view(-1).view(torch.uint8).split(self._piece_bytes)

    @torch.inference_mode()  # whoever sends may be in it, and then the copies are inference tensors
    def _copy(self, source: torch.Tensor, target: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
        piece = self._free.get()
        try:
            if piece.sent is not None:
                piece.sent.synchronize()
            memory = piece.memory[: len(source)].copy_(source)
            with torch.cuda.stream(stream):
                target.copy_(memory, non_blocking=True)
                if piece.sent is not None:
                    piece.sent.record(stream)
        finally:
            self._free.put(piece)
