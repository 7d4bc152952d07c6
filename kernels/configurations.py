"""Block sizes and warps of the kernels, by GPU architecture: `configurations.json`.

**Measured on an H100 (sm_90; `python benchmarks/gpu.py --parts kernels --tune`), chosen by reasoning for the others.**
The reasoning: every kernel here is bound by memory, so a program keeps 8 to 16 elements per thread (one or two 16-byte
loads in flight in half precision), contiguous runs are 128 bytes or more, and registers leave room for several programs
per multiprocessor. `lora_patch`'s tiles are the largest that the compiler fits into 128 registers in half precision,
which is two programs of 8 warps; with 128 by 128 there would be one. sm_89 has less bandwidth to hide and gets smaller
tiles. On the H100 GroupNorm wanted more elements per thread than that, and no more programs than run at a time.

**`add_layer_norm`, `bias_residual`, `grouped_lora` and `quantise_rows` are chosen by reasoning everywhere.**
`grouped_lora` (`--parts grouped_lora --tune`) has the largest tiles of y that leave two programs to a multiprocessor:
124 registers on sm_90; up to sm_89 more, so half as wide.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

ARCHITECTURES = (80, 89, 90, 100)
"""Compute capabilities in the table, ten times their number."""

DEFAULT_ARCHITECTURE = 90
"""Stands in where there is no GPU: in the interpreter."""

CANDIDATES: Mapping[str, tuple[Mapping[str, int], ...]] = {
    "add_layer_norm": ({"num_warps": 2}, {"num_warps": 4}, {"num_warps": 8}),
    "bias_residual": (
        {"block_rows": 16, "block_columns": 128, "num_warps": 4},
        {"block_rows": 32, "block_columns": 128, "num_warps": 8},
        {"block_rows": 64, "block_columns": 64, "num_warps": 8},
    ),
    "cfg_step": ({"block": 512, "num_warps": 4}, {"block": 1024, "num_warps": 4}, {"block": 2048, "num_warps": 8}),
    "geglu": (
        {"block_rows": 4, "block_columns": 256, "num_warps": 4},
        {"block_rows": 8, "block_columns": 256, "num_warps": 4},
        {"block_rows": 2, "block_columns": 1024, "num_warps": 8},
    ),
    "group_norm_silu": (
        {"tile": 2048, "num_warps": 4, "programs_per_sm": 4},
        {"tile": 4096, "num_warps": 8, "programs_per_sm": 4},
        {"tile": 8192, "num_warps": 8, "programs_per_sm": 2},
    ),
    "grouped_lora": (
        {"block_tokens": 64, "block_columns": 64, "block_rank": 64, "num_warps": 4},
        {"block_tokens": 64, "block_columns": 64, "block_rank": 64, "num_warps": 8},
        {"block_tokens": 64, "block_columns": 128, "block_rank": 64, "num_warps": 8},
        {"block_tokens": 64, "block_columns": 128, "block_rank": 128, "num_warps": 8},
        {"block_tokens": 128, "block_columns": 64, "block_rank": 64, "num_warps": 8},
    ),
    "lora_patch": (
        {"block_rows": 64, "block_columns": 64, "block_rank": 32, "num_warps": 4},
        {"block_rows": 64, "block_columns": 128, "block_rank": 32, "num_warps": 8},
        {"block_rows": 128, "block_columns": 128, "block_rank": 32, "num_warps": 8},
    ),
    "quantise_rows": ({"num_warps": 2}, {"num_warps": 4}, {"num_warps": 8}),
}
"""What a measurement should try: op → settings, over those of the table."""


def configuration(op: str, device: torch.device | int) -> dict[str, int]:
    """The settings of an op's kernels.

    Args:
        op: Name without namespace.
        device: Where they will run, or an architecture such as 90. Architectures that are not in the table get the
            next older one of it; anything without a compute capability gets DEFAULT_ARCHITECTURE.
    """
    architecture = device if isinstance(device, int) else _architecture(device)
    known = max((known for known in ARCHITECTURES if known <= architecture), default=ARCHITECTURES[0])
    return dict(_table()[op][str(known)])


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a device; those of DEFAULT_ARCHITECTURE's data-centre card without a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return configuration("group_norm_silu", DEFAULT_ARCHITECTURE)["multiprocessors"]


def _architecture(device: torch.device) -> int:
    if device.type != "cuda":
        return DEFAULT_ARCHITECTURE
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def _table() -> dict[str, dict[str, dict[str, int]]]:
    return json.loads(Path(__file__).with_name("configurations.json").read_text(encoding="utf-8"))
