"""What each use of a device's memory may take of it."""

from __future__ import annotations

import math

import torch

from .prompt_projections import MOST_BYTES

BESIDE_BYTES, BESIDE_SHARE = 2**30, 0.1
"""Most that LoRAs beside the weights take, and as much again what mask-aware runs keep: of main memory in bytes, and of
a GPU's memory as a share."""

PROMPTS_SHARE = 0.02
"""Of a GPU's memory, most that kept projections of prompts take, of which SDXL's row of 77 tokens has 26 MB in half
precision; for a CPU see `prompt_projections.MOST_BYTES`."""

SCRATCH_SHARE = 0.01
"""Of a GPU's memory, what rows of stacks take from the first mask-aware call on: of an H100 enough for eight guided
SDXL requests at 1024 x 1024; for more it grows, and all that was captured of stacks goes."""

GRAPHS_SHARE = 0.2
"""Of a GPU's memory, what graphs of a half or a ControlNet hold on to, all that they are given counted: of SDXL's
encoder half 80 MB a row in half precision, two thirds of which it gives."""


def beside_bytes(device: torch.device) -> int:
    """What LoRAs beside the weights may take of the device's memory, and as much what mask-aware runs keep."""
    return int(BESIDE_SHARE * memory_of(device)) or BESIDE_BYTES


def graph_bytes(device: torch.device) -> float:
    """What inputs and outputs of a network's graphs may take."""
    return GRAPHS_SHARE * memory_of(device) or math.inf


def prompt_bytes(device: torch.device) -> int:
    """What kept projections of prompts may take of the device's memory."""
    return int(PROMPTS_SHARE * memory_of(device)) or MOST_BYTES


def scratch_bytes(device: torch.device) -> int:
    """What rows of stacks take of the device's memory at first."""
    return int(SCRATCH_SHARE * memory_of(device))


def memory_of(device: torch.device) -> int:
    """Bytes that a GPU has; 0 for another device."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
