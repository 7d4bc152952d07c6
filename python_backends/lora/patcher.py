"""W ← W0 + Σ scale · delta, in place, over all modules of a model at once.

Weights of one shape are made views of one tensor, and so are the deltas of a canonical LoRA: a swap is a batched matrix
product per shape and rank, over just the modules that the old or the new set adapts. Addresses never change, so traced
graphs and CUDA graphs stay valid; W0 is kept, so nothing drifts, and every set gives the same bits whatever was patched
in before.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from .modules import adaptable_weights, stack_order
from .terms import delta

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .canonical import CanonicalLora, Group

CHUNK_ELEMENTS = 2**24
"""Most elements of a temporary delta: 64 MiB in float32."""


class WeightStack:
    """The weights of n modules of one shape.

    Attributes:
        weights: [n, out, in·k], what the modules compute with.
        touched: Positions that differ from W0.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        """Moves the parameters' data into one tensor; each becomes a view of its place there."""
        stacked = torch.stack([parameter.data for parameter in parameters])
        for parameter, place in zip(parameters, stacked, strict=True):
            parameter.data = place
        self.weights = stacked.flatten(2)
        self.touched: set[int] = set()
        self._pristine: torch.Tensor | None = None

    @property
    def pristine(self) -> torch.Tensor:
        """W0 [n, out, in·k], copied before the first patch."""
        if self._pristine is None:
            self._pristine = self.weights.clone()
        return self._pristine

    def patch(self, terms: Sequence[_StackedTerms]) -> None:
        """Sets every weight that these terms or the last ones adapt."""
        pristine = self.pristine
        wanted = sorted({position for term in terms for position in term.index})
        left = sorted(self.touched.difference(wanted))
        self.touched.update(wanted)
        for start, end in _runs(left):
            self.weights[start:end].copy_(pristine[start:end])
        most = max(1, CHUNK_ELEMENTS // self.weights[0].numel())
        for start, end, active in _segments(wanted, terms):
            for low in range(start, end, most):
                self._patch_run(low, min(low + most, end), active)
        self.touched = set(wanted)

    def _patch_run(self, start: int, end: int, terms: Sequence[_StackedTerms]) -> None:
        """Patches neighbours that the same terms adapt; sums in float32 whatever the weights are."""
        target, base = self.weights[start:end], self.pristine[start:end]
        first, *others = terms
        if target.dtype == torch.float32:
            first.add(base, base, start, out=target)
            for term in others:
                term.add(target, base, start, out=target)
            return
        base = base.float()
        total = first.add(base, base, start, out=torch.empty_like(base))
        for term in others:
            term.add(total, base, start, out=total)
        target.copy_(total)


@dataclass(frozen=True)
class _StackedTerms:
    """A group of a LoRA over one weight stack, at one scale.

    Attributes:
        group: The group.
        scale: Of the request.
        index: Position in the weight stack → position in the group.
    """

    group: Group
    scale: float
    index: Mapping[int, int]

    def add(self, to: torch.Tensor, base: torch.Tensor, start: int, out: torch.Tensor) -> torch.Tensor:
        """`to` + scale · delta of the stack's positions from `start`, into `out`: all [m, out, in·k] float32."""
        low = self.index[start]
        places = slice(low, low + len(out))
        tensors = {name: tensor[places].to(out.device) for name, tensor in self.group.tensors.items()}
        scales = torch.tensor(self.group.scales[places], device=out.device)[:, None, None] * self.scale
        across = [tensors.pop(name) for name in ("row", "column") if name in tensors]
        if self.group.form == "low_rank":
            torch.baddbmm(to, tensors["up"].float() * scales, tensors["down"].float(), out=out)
        else:
            torch.addcmul(to, delta(self.group.form, tensors), scales, out=out)
        for coefficients in across:  # DoRA rescales the weight itself
            out.addcmul_(base, coefficients, value=self.scale)
        return out


class Patcher:
    """The adaptable weights of some models, and the LoRAs that are patched into them.

    Patch between calls of the models, never during one.
    """

    def __init__(self, parts: Mapping[str, torch.nn.Module]) -> None:
        """Rearranges the weights of the models.

        Args:
            parts: Component (`unet`, `text_encoder`, `text_encoder_2`) → model, on its device and of its precision.
        """
        self._places: dict[tuple[str, str], tuple[WeightStack, int]] = {}
        self._stacks: list[WeightStack] = []
        for component, model in parts.items():
            weights = adaptable_weights(model)
            for names in _by_shape(weights):
                stack = WeightStack([weights[name] for name in names])
                self._stacks.append(stack)
                self._places |= {(component, name): (stack, position) for position, name in enumerate(names)}
        self._components = frozenset(parts)

    @torch.no_grad()
    def apply(self, loras: Iterable[tuple[CanonicalLora, float]]) -> int:
        """Makes these LoRAs, and no others, be patched in.

        Args:
            loras: (LoRA, scale) pairs; the sum is formed in this order.

        Returns:
            Number of modules that they adapt.
        """
        terms: dict[WeightStack, list[_StackedTerms]] = {stack: [] for stack in self._stacks if stack.touched}
        for lora, scale in loras:
            for group in lora.groups:
                if group.component in self._components:
                    places = [self._places[group.component, module] for module in group.modules]
                    index = {position: number for number, (_, position) in enumerate(places)}
                    terms.setdefault(places[0][0], []).append(_StackedTerms(group, scale, index))
        for stack, stacked in terms.items():
            stack.patch(stacked)
        return sum(len(stack.touched) for stack in terms)


def _by_shape(weights: Mapping[str, torch.Tensor]) -> list[list[str]]:
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name in stack_order(weights):
        shapes.setdefault(tuple(weights[name].shape), []).append(name)
    return list(shapes.values())


def _runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """[start, end) of every run of consecutive positions."""
    breaks = [i for i, (a, b) in enumerate(pairwise(positions), start=1) if b != a + 1]
    bounds = [0, *breaks, len(positions)]
    return [(positions[a], positions[b - 1] + 1) for a, b in pairwise(bounds) if b > a]


def _segments(
    positions: Sequence[int], terms: Sequence[_StackedTerms]
) -> list[tuple[int, int, tuple[_StackedTerms, ...]]]:
    """[start, end) of consecutive positions that the same terms adapt, with those terms."""
    segments: list[tuple[int, int, tuple[_StackedTerms, ...]]] = []
    last: tuple[int, ...] = ()
    for position in positions:
        numbers = tuple(number for number, term in enumerate(terms) if position in term.index)
        if segments and segments[-1][1] == position and numbers == last:
            segments[-1] = (segments[-1][0], position + 1, segments[-1][2])
        else:
            segments.append((position, position + 1, tuple(terms[number] for number in numbers)))
        last = numbers
    return segments
