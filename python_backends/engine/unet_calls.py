"""The UNet calls that a batch of requests makes in one step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from .guidance import CONDITIONAL, UNCONDITIONAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..lora.files.lora_set import LoraSet
    from ..request.completed import ControlNetUse
    from .run import Denoising
    from .token_rows import TokenRow


@dataclass(frozen=True)
class UNetCall:
    """One call of one shard: rows of several requests with inputs of one shape.

    Attributes:
        rows: (request, half) of each batch row; none where they are another shard's.
        loras: The LoRA set of each row; of those that are masked alike, which lie together, rows of one set do.
        ahead: LoRAs that the rows' requests will want.
        controls: The active ControlNets of each row.
        tensors: LATENTS [B, C, h, w], TIMESTEPS [B, 1] and the conditioning of the rows.
        pixels: Height × width of the pictures.
        tokens: Of each row what is kept of its transformers or masked in them; None for nothing.
    """

    rows: tuple[tuple[Denoising, int], ...]
    loras: tuple[LoraSet, ...]
    ahead: LoraSet
    controls: tuple[tuple[ControlNetUse, ...], ...]
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    pixels: int
    tokens: tuple[TokenRow | None, ...] = ()

    @property
    def work(self) -> int:
        """As `StepTimes` counts it."""
        return len(self.loras) * self.pixels

    @property
    def control_work(self) -> int:
        """The same of ControlNets."""
        return sum(map(len, self.controls)) * self.pixels

    @property
    def halves_alike(self) -> bool:
        """Whether its rows are the unconditional ones of some runs, and then the conditional ones of the same."""
        runs, halves = [run for run, _ in self.rows], [half for _, half in self.rows]
        middle = len(runs) // 2
        are_in_turn = halves == [UNCONDITIONAL] * middle + [CONDITIONAL] * middle
        return bool(runs) and are_in_turn and runs[:middle] == runs[middle:]

    def of(self, rows: Sequence[int]) -> UNetCall:
        """Some of its rows."""
        if len(rows) == len(self.loras):
            return self
        together = len(rows) == rows[-1] - rows[0] + 1  # as those of one set are: no copies then
        chosen = slice(rows[0], rows[-1] + 1) if together else list(rows)
        return replace(
            self,
            rows=tuple(self.rows[row] for row in rows) if self.rows else (),
            loras=tuple(self.loras[row] for row in rows),
            controls=tuple(self.controls[row] for row in rows),
            tensors={name: tensor[chosen] for name, tensor in self.tensors.items()},
            tokens=_any(tuple(self.tokens[row] for row in rows) if self.tokens else ()),
        )


def unet_calls(
    rows: Iterable[tuple[Denoising, int]], inputs: Mapping[Denoising, tuple[torch.Tensor, torch.Tensor]]
) -> list[UNetCall]:
    """The calls that evaluate the rows given to one shard: one per shape of inputs.

    Rows whose transformers are told something are called apart: the others go by traces, or by graphs of whole halves.
    Of rows with the same LoRAs the unconditional ones come first, whose prompts may be zeros: these are left out.

    Args:
        rows: (request, half) pairs.
        inputs: `model_input()` of every request among them.
    """
    asked = {(run, half): run.tokens(half) for run, half in rows}

    def shapes(row: tuple[Denoising, int]) -> tuple[bool, list[tuple[int, ...]]]:
        inputs = (row[0].latents, *row[0].conditioning.values())
        return asked[row] is not None, [tuple(tensor.shape) for tensor in inputs]

    def masked(row: tuple[Denoising, int]) -> tuple[int, ...]:
        tokens = asked[row]
        return () if tokens is None else tokens.sizes

    calls = []
    ordered = sorted(asked, key=lambda row: (shapes(row), masked(row), row[0].loras.current, row[1]))
    for _, group in groupby(ordered, key=shapes):
        members = tuple(group)
        tokens = tuple(asked[row] for row in members)
        tensors = {
            "LATENTS": _join([inputs[denoising][0] for denoising, _ in members]),
            "TIMESTEPS": _join([inputs[denoising][1] for denoising, _ in members]),
        }
        for name in members[0][0].conditioning:
            tensors[name] = _join([denoising.conditioning[name][half : half + 1] for denoising, half in members])
        loras = tuple(denoising.loras.current for denoising, _ in members)
        controls = tuple(denoising.controls(half) for denoising, half in members)
        ahead = tuple(sorted({each for denoising, _ in members for each in denoising.loras.ahead}))
        pixels = members[0][0].work.pixels
        calls.append(UNetCall(members, loras, ahead, controls, tensors, pixels, _any(tokens)))
    return calls


def _any(tokens: tuple[TokenRow | None, ...]) -> tuple[TokenRow | None, ...]:
    """Nothing where there are none among them."""
    return tokens if any(tokens) else ()


def _join(rows: list[torch.Tensor]) -> torch.Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)
