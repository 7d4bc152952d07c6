"""The UNet calls that a batch of requests makes in one step."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from ..lora.files.lora_set import NO_LORAS, LoraSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..request.completed import ControlNetUse
    from .run import Denoising


@dataclass(frozen=True)
class UNetCall:
    """One call of one shard: rows of several requests with inputs of one shape and one LoRA set.

    Attributes:
        rows: (request, half) of each batch row; none where they are another shard's.
        loras: The set that is to be resident.
        ahead: LoRAs that the rows' requests will want.
        controls: The active ControlNets of each row.
        tensors: LATENTS [B, C, h, w], TIMESTEPS [B, 1] and the conditioning of the rows.
    """

    rows: tuple[tuple[Denoising, int], ...]
    loras: LoraSet
    ahead: LoraSet
    controls: tuple[tuple[ControlNetUse, ...], ...]
    tensors: dict[str, torch.Tensor] = field(repr=False)


def unet_calls(
    rows: Iterable[tuple[Denoising, int]],
    inputs: Mapping[Denoising, tuple[torch.Tensor, torch.Tensor]],
    resident: LoraSet = NO_LORAS,
) -> list[UNetCall]:
    """The calls that evaluate the rows given to one shard: one per shape of inputs and LoRA set.

    Args:
        rows: (request, half) pairs.
        inputs: `model_input()` of every request among them.
        resident: The shard's LoRA set; its calls come first.
    """

    def kind(row: tuple[Denoising, int]) -> tuple[bool, LoraSet, tuple[torch.Size, ...]]:
        loras = row[0].loras.current
        tensors = (row[0].latents, *row[0].conditioning.values())
        return loras != resident, loras, tuple(tensor.shape for tensor in tensors)

    calls = []
    for (_, loras, _), group in groupby(sorted(rows, key=kind), key=kind):
        members = tuple(group)
        tensors = {
            "LATENTS": _join([inputs[denoising][0] for denoising, _ in members]),
            "TIMESTEPS": _join([inputs[denoising][1] for denoising, _ in members]),
        }
        for name in members[0][0].conditioning:
            tensors[name] = _join([denoising.conditioning[name][half : half + 1] for denoising, half in members])
        controls = tuple(denoising.controls(half) for denoising, half in members)
        ahead = tuple(sorted({each for denoising, _ in members for each in denoising.loras.ahead}))
        calls.append(UNetCall(members, loras, ahead, controls, tensors))
    return calls


def _join(rows: list[torch.Tensor]) -> torch.Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)
