"""A LoRA file from anywhere, read as what it may be: hostile.

The file is read into memory and never mapped: one that is overwritten meanwhile must not take the process with it.
Pickles are refused, whatever they are called.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from ...common.errors import InvalidRequestError, UnusableFileError

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
READ_AS = {torch.float64: torch.float32, torch.float8_e4m3fn: torch.float16, torch.float8_e5m2: torch.float16}
"""Other types that are taken, and what becomes of them: float16 holds every number of eight bits."""
WHOLE_DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool)
"""Of single numbers, such as alphas: weights of whole numbers are quantised, and without their scales mean nothing."""


@dataclass(frozen=True)
class FileLimits:
    """What a LoRA file may be.

    Attributes:
        file_bytes: Its length.
        header_bytes: Length of the JSON header: names, shapes and metadata.
        tensors: Number of tensors.
    """

    file_bytes: int = 4 * 2**30
    header_bytes: int = 16 * 2**20
    tensors: int = 20_000


@dataclass(frozen=True)
class LoraFile:
    """The checked contents: floating-point tensors of 16 or 32 bits, all finite, and the header's metadata."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


def read_lora_file(path: Path, limits: FileLimits | None = None) -> LoraFile:
    """Reads and checks a safetensors file.

    Raises:
        UnusableFileError: If it is anything but safetensors of finite numbers; the sentence says what it is.
        InvalidRequestError: If it is beyond a limit.
    """
    data, metadata = _read_bytes(path, limits or FileLimits())
    try:
        tensors = load(data)
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise UnusableFileError(f"the file is not valid safetensors: {_short(error)}") from None
    for name, tensor in tensors.items():
        if tensor.dtype in READ_AS:
            tensor = tensors[name] = tensor.to(READ_AS[tensor.dtype])
        elif tensor.dtype in WHOLE_DTYPES and tensor.numel() == 1:
            tensor = tensors[name] = tensor.float()
        elif tensor.dtype not in DTYPES:
            raise UnusableFileError(
                f'tensor "{_short(name)}" is {tensor.dtype}; allowed: floating point, or one whole number'
            )
        if not _is_finite(tensor):
            raise UnusableFileError(f'tensor "{_short(name)}" holds NaN or infinite values; allowed: finite ones')
    return LoraFile(tensors, metadata)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite: one sum tells it in a third of the time, unless large values overflow."""
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(torch.isfinite(tensor).all())


def _read_bytes(path: Path, limits: FileLimits) -> tuple[bytes, dict[str, str]]:
    """The file's bytes and its header's metadata, once the header is known to be harmless."""
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= limits.header_bytes:
            raise UnusableFileError(
                f"the file is not safetensors: it announces a header of {length} bytes; "
                f"allowed: 2 to {limits.header_bytes}"
            )
        header = file.read(length)
        metadata = _metadata(header, length, limits)
        rest = file.read(limits.file_bytes + 1 - 8 - length)
    if 8 + length + len(rest) > limits.file_bytes:
        raise InvalidRequestError(f"the file is longer than {limits.file_bytes} bytes; allowed: at most so many")
    return start + header + rest, metadata


def _metadata(header: bytes, length: int, limits: FileLimits) -> dict[str, str]:
    try:
        entries = json.loads(header) if len(header) == length else None
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise UnusableFileError("the file is not safetensors: its header is cut off or not a JSON object")
    metadata = entries.get("__metadata__", {})
    count = len(entries) - ("__metadata__" in entries)
    if count > limits.tensors:
        raise InvalidRequestError(f"the file holds {count} tensors; allowed: at most {limits.tensors}")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UnusableFileError("the file's __metadata__ is not an object of texts")
    return metadata


def _short(text: object) -> str:
    shown = str(text)
    return shown if len(shown) <= 160 else f"{shown[:157]}…"
