"""The weights of modules of one shape as one tensor, and the terms of LoRAs over it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ....kernels.memory_format import is_channels_last
from ..files.terms import delta

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ....kernels.lora_tables import WeightTable
    from ..files.canonical import Group

CHUNK_ELEMENTS = 2**24
"""Most elements of a temporary delta: 64 MiB in float32."""

_BY_COLUMN = frozenset({"down", "down_2", "delta", "column"})
"""Tensors of a group whose last dimension is the weight's in·k."""


@dataclass(frozen=True)
class Patched:
    """Weights of some positions with LoRAs in them.

    Attributes:
        positions: In the stack.
        weights: [positions, out, in·k].
        views: Of each of them, in its parameter's shape: to point to it takes a microsecond.
    """

    positions: tuple[int, ...]
    weights: torch.Tensor
    views: tuple[torch.Tensor, ...]


NOTHING_PATCHED = Patched((), torch.empty(0), ())


class WeightStack:
    """The weights of n modules of one shape.

    In place, where CUDA graphs or engines hold their addresses. Else W0 stays where it is, and modules are pointed to
    patched weights of their own, which may be kept and taken again.

    Attributes:
        parameters: The modules' own.
        weights: [n, out, in·k] in memory order, of channels-last ones [n, out, k·in]: patched in place, or W0.
        first: Number of the first of them among all modules of the patcher.
        touched: Positions that differ from W0.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], first: int, in_place: bool) -> None:
        """Moves the parameters' data into one tensor; each becomes a view of its place there, of its old layout."""
        self.parameters, self.first = tuple(parameters), first
        self._is_channels_last = is_channels_last(parameters[0])
        order = (0, 2, 3, 1) if self._is_channels_last else tuple(range(parameters[0].ndim))
        back = (0, 3, 1, 2) if self._is_channels_last else order
        own = parameters[0].data.permute(order)
        stacked = torch.empty((len(parameters), *own.shape), dtype=own.dtype, device=own.device)
        for parameter, place in zip(parameters, stacked, strict=True):  # one by one: no weight is there twice for long
            place.copy_(parameter.data.permute(order))
            parameter.data = place.permute(back)
        self.weights = stacked.flatten(2)
        self.in_place = in_place
        self.touched: set[int] = set()
        self.current: Patched | None = None
        self._own = tuple(parameter.data for parameter in parameters)
        self._pristine: torch.Tensor | None = None if self.in_place else self.weights

    @property
    def pristine(self) -> torch.Tensor:
        """W0 [n, out, in·k] in memory order; copied before the first patch in place."""
        if self._pristine is None:
            self._pristine = self.weights.clone()
        return self._pristine

    def use_pristine(self, table: WeightTable) -> None:
        """Takes W0 from a table of all weights, before the first patch."""
        self._pristine = table.pristine_of(self.first, len(self.parameters))

    def in_order(self, group: Group) -> Group:
        """A group over these modules whose columns are in the weights' memory order."""
        if not self._is_channels_last:
            return group
        form, tensors = group.form, dict(group.tensors)
        if form == "kronecker":  # its columns are no matrix of their own
            form, tensors = "dense", {"delta": delta(form, tensors)}
        for name in _BY_COLUMN & tensors.keys():
            columns = tensors[name].unflatten(-1, self.parameters[0].shape[1:])
            tensors[name] = columns.movedim(-3, -1).flatten(-3).contiguous()
        return replace(group, form=form, tensors=tensors)

    def patch(self, terms: Sequence[StackedTerms]) -> None:
        """Sets every weight that these terms or the last ones adapt."""
        pristine = self.pristine
        wanted = sorted({position for term in terms for position in term.index})
        if self.in_place:
            left = sorted(self.touched.difference(wanted))
            self.touched.update(wanted)
            for start, end, _ in segments(left, ()):
                self.weights[start:end].copy_(pristine[start:end])
            self._patch(wanted, terms, self.weights, {position: position for position in wanted})
            self.touched = set(wanted)
        else:
            made = torch.empty((len(wanted), *pristine.shape[1:]), dtype=pristine.dtype)
            self._patch(wanted, terms, made, {position: number for number, position in enumerate(wanted)})
            views = tuple(map(self._as_parameter, made, wanted))
            self.point_to(Patched(tuple(wanted), made, views))

    def point_to(self, patched: Patched | None) -> None:
        """Has modules compute with patched weights, and all others with W0."""
        patched = patched or NOTHING_PATCHED
        for position in self.touched.difference(patched.positions):
            self.parameters[position].data = self._own[position]
        for position, view in zip(patched.positions, patched.views, strict=True):
            self.parameters[position].data = view
        self.touched, self.current = set(patched.positions), patched if patched.positions else None

    def _as_parameter(self, weight: torch.Tensor, position: int) -> torch.Tensor:
        """A weight [out, in·k] in the parameter's shape."""
        return weight.as_strided(self.parameters[position].shape, self.parameters[position].stride())

    def _patch(
        self, wanted: Sequence[int], terms: Sequence[StackedTerms], to: torch.Tensor, places: Mapping[int, int]
    ) -> None:
        """Writes W0 + terms of some positions into their places."""
        most = max(1, CHUNK_ELEMENTS // self.weights[0].numel())
        for start, end, active in segments(wanted, terms):
            for low in range(start, end, most):
                count = min(low + most, end) - low
                self._patch_run(low, to[places[low] : places[low] + count], active)

    def _patch_run(self, start: int, target: torch.Tensor, terms: Sequence[StackedTerms]) -> None:
        """Patches neighbours that the same terms adapt; sums in float32 whatever the weights are."""
        base = self.pristine[start : start + len(target)]
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
class StackedTerms:
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
        places = [self.index[position] for position in range(start, start + len(out))]
        low, high = places[0], places[-1] + 1
        chosen = slice(low, high) if places == list(range(low, high)) else places  # else of a stack in another order
        tensors = {name: tensor[chosen].to(out.device) for name, tensor in self.group.tensors.items()}
        own = [self.group.scales[place] for place in places]
        scales = torch.tensor(own, device=out.device)[:, None, None] * self.scale
        across = [tensors.pop(name) for name in ("row", "column") if name in tensors]
        if self.group.form == "low_rank":
            torch.baddbmm(to, tensors["up"].float() * scales, tensors["down"].float(), out=out)
        else:
            torch.addcmul(to, delta(self.group.form, tensors), scales, out=out)
        for coefficients in across:  # DoRA rescales the weight itself
            out.addcmul_(base, coefficients, value=self.scale)
        return out


def segments(
    positions: Sequence[int], terms: Sequence[StackedTerms]
) -> list[tuple[int, int, tuple[StackedTerms, ...]]]:
    """[start, end) of consecutive positions that the same terms adapt, with those terms."""
    segments: list[tuple[int, int, tuple[StackedTerms, ...]]] = []
    last: tuple[int, ...] = ()
    for position in positions:
        numbers = tuple(number for number, term in enumerate(terms) if position in term.index)
        if segments and segments[-1][1] == position and numbers == last:
            segments[-1] = (segments[-1][0], position + 1, segments[-1][2])
        else:
            segments.append((position, position + 1, tuple(terms[number] for number in numbers)))
        last = numbers
    return segments
