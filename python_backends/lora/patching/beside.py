"""LoRAs beside the weights: rows of one call with different sets, each row with its own factors.

y = x·W0ᵀ + Σ scale·(x·downᵀ)·upᵀ, by hooks on the adapted modules that are there only while rows need them. The factors
of a set lie in a slot of static buffers, so that CUDA graphs stay valid while sets come and go.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ....kernels.grouped_lora import VECTOR, grouped_lora, warm_up
from ..files.canonical import CanonicalLora, Group
from ..files.modules import UNET

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from ..files.lora_set import LoraSet
    from .patcher import Patcher
    from .weight_stack import WeightStack

MOST_ROWS = 256


@dataclass(eq=False)
class _Slots:
    """Factors for the n modules of one weight stack: down [n, S, R, in·k], up [n, S, out, R], int32 ranks [n, S].

    Attributes:
        of: Those of each module.
    """

    modules: Sequence[torch.nn.Module]
    down: torch.Tensor
    up: torch.Tensor
    ranks: torch.Tensor

    def __post_init__(self) -> None:
        self.of = list(zip(self.down, self.up, self.ranks, strict=True))

    @classmethod
    def empty(cls, modules: Sequence[torch.nn.Module], like: torch.Tensor, slots: int, bucket: int) -> _Slots:
        """For weights [n, out, in·k] of that type and device."""
        n, out, columns = like.shape
        ranks = torch.zeros(n, slots, dtype=torch.int32, device=like.device)
        return cls(modules, like.new_zeros(n, slots, bucket, columns), like.new_zeros(n, slots, out, bucket), ranks)

    def clear(self, slot: int) -> None:
        """Empties a slot."""
        for tensor in (self.down, self.up, self.ranks):
            tensor[:, slot] = 0

    def add(self, slot: int, positions: Sequence[int], group: Group, scale: float) -> None:
        """Puts a LoRA's factors beside those that a slot has already; positions are those of the group's modules."""
        up, down = group.tensors["up"], group.tensors["down"]
        scaled = up.float() * (torch.tensor(group.scales, device=up.device)[:, None, None] * scale)
        used = self.ranks[:, slot].tolist()
        for number, position in enumerate(positions):
            start, end = used[position], used[position] + down.shape[1]
            self.down[position, slot, start:end] = down[number]
            self.up[position, slot, :, start:end] = scaled[number]
            self.ranks[position, slot] = end


class BesideLoras:
    """The side path of one UNet.

    Attributes:
        variant: What calls depend on beside their inputs' shapes: None without hooks, else a value that graphs are kept
            by.
    """

    def __init__(self, unet: torch.nn.Module, patcher: Patcher, most_bytes: int) -> None:
        """Changes nothing yet.

        Args:
            unet: The module.
            patcher: Of its weights.
            most_bytes: That slots may take.
        """
        self.variant: Hashable = None
        self._patcher = patcher
        modules = dict(unet.named_modules())
        self._modules: dict[WeightStack, list[torch.nn.Module]] = {}
        for (component, name), (stack, _) in patcher.places.items():  # in the order of their positions
            if component == UNET:
                self._modules.setdefault(stack, []).append(modules[name])
        first = next(iter(self._modules)).weights
        of_a_rank = sum(len(found) * sum(stack.weights.shape[1:]) for stack, found in self._modules.items())
        self._dtype = first.dtype
        self._capacity = most_bytes // (of_a_rank * first.element_size())
        self._slots: dict[WeightStack, _Slots] = {}
        self._sizes, self._generation = (0, 0), 0
        self._rows = torch.full((MOST_ROWS,), -1, dtype=torch.int32, device=first.device)
        self._ranges: list[tuple[int, slice]] = []
        self._held: dict[LoraSet, int] = {}
        self._hooks: list[Any] = []

    def warm_up(self) -> None:
        """On a GPU: compiles the kernels, so that no LoRA pays for it."""
        if self._rows.is_cuda:
            warm_up(self._dtype, self._dtype, self._rows.device)

    def rank(self, lora: CanonicalLora) -> int | None:
        """The largest rank of a LoRA's factors; None for one that has parts without a cheap low-rank form."""
        groups = [group for group in lora.groups if group.component == UNET]
        if not all(self._takes(group) for group in groups):
            return None
        return max((group.tensors["down"].shape[1] for group in groups), default=0)

    def fits(self, ranks: Sequence[int]) -> bool:
        """Whether there is room for sets of these ranks at a time."""
        slots, bucket = self._wanted(ranks)
        return slots * bucket <= self._capacity

    @torch.inference_mode()
    def use(self, sets: Sequence[LoraSet], lora: Callable[[str], CanonicalLora]) -> None:
        """From now on the rows of calls have these sets beside the weights; an empty sequence ends that.

        Args:
            sets: One per row.
            lora: Gives a LoRA by its key; prepared as `Patcher.prepare` does.
        """
        wanted = [each for each in dict.fromkeys(sets) if each]
        if not wanted:
            self._hook(frozenset())
            return
        found = {key: lora(key) for each in wanted for key, _ in each}
        ranks = [sum(self.rank(found[key]) or 0 for key, _ in each) for each in wanted]
        self._grow(*self._wanted(ranks))
        for each in wanted:
            if each not in self._held:
                taken = {slot for other, slot in self._held.items() if other in wanted}
                slot = next(number for number in range(self._sizes[0]) if number not in taken)
                self._held = {other: number for other, number in self._held.items() if number != slot}
                self._fill(slot, [(found[key], scale) for key, scale in each])
                self._held[each] = slot
        slots = [self._held[each] if each else -1 for each in sets]
        self._rows[: len(slots)] = torch.tensor(slots, dtype=torch.int32)
        starts = [row for row, slot in enumerate(slots) if row == 0 or slot != slots[row - 1]]
        ends = [*starts[1:], len(slots)]
        self._ranges = [(slots[a], slice(a, b)) for a, b in zip(starts, ends, strict=True) if slots[a] >= 0]
        chosen = [self._held[each] for each in wanted]
        self._hook(
            frozenset(
                (stack.first, position)
                for stack, held in self._slots.items()
                for position in held.ranks[:, chosen].any(1).nonzero().flatten().tolist()
            )
        )

    @property
    def slots(self) -> torch.Tensor:
        """Of every row of a batch, int32; negative for none."""
        return self._rows

    @contextmanager
    def by(self, slots: torch.Tensor) -> Iterator[None]:
        """Meanwhile modules of a GPU's networks are called with rows that have these, int32."""
        whole, self._rows = self._rows, slots
        try:
            yield
        finally:
            self._rows = whole

    @contextmanager
    def of(self, rows: slice) -> Iterator[None]:
        """Meanwhile modules are called with these rows of a batch alone."""
        whole = self._rows, self._ranges
        self._rows = self._rows[rows].clone()  # aligned, as the kernel's pointers are elsewhere
        self._ranges = [
            (slot, slice(max(0, each.start - rows.start), min(each.stop, rows.stop) - rows.start))
            for slot, each in self._ranges
            if each.start < rows.stop and each.stop > rows.start
        ]
        try:
            yield
        finally:
            self._rows, self._ranges = whole

    def _takes(self, group: Group) -> bool:
        if group.form != "low_rank" or group.tensors.keys() != {"up", "down"}:
            return False
        place = self._patcher.places.get((group.component, group.modules[0]))
        if place is None:
            return False  # a norm, or a bias
        module = self._modules[place[0]][0]
        return isinstance(module, torch.nn.Linear) or not place[0].weights.is_cuda or _is_pointwise(module)

    @staticmethod
    def _wanted(ranks: Sequence[int]) -> tuple[int, int]:
        """Slots and rank bucket, so that they seldom grow."""
        bucket = max(VECTOR, 1 << (max(ranks) - 1).bit_length()) if ranks and max(ranks) else VECTOR
        return 1 << (max(2, len(ranks)) - 1).bit_length(), bucket

    def _grow(self, slots: int, bucket: int) -> None:
        """Makes room; everything is filled anew after that."""
        if slots > self._sizes[0] or bucket > self._sizes[1]:
            sizes = max(slots, self._sizes[0]), max(bucket, self._sizes[1])
            self._sizes = sizes if sizes[0] * sizes[1] <= self._capacity else (slots, bucket)
            self._slots, self._held, self._generation = {}, {}, self._generation + 1

    def _fill(self, slot: int, loras: Sequence[tuple[CanonicalLora, float]]) -> None:
        for held in self._slots.values():
            held.clear(slot)
        for lora, scale in loras:
            for group in lora.groups:
                if group.component != UNET:
                    continue
                places = [self._patcher.places[group.component, module] for module in group.modules]
                stack = places[0][0]
                if stack not in self._slots:
                    self._slots[stack] = _Slots.empty(self._modules[stack], stack.weights, *self._sizes)
                self._slots[stack].add(slot, [position for _, position in places], group, scale)

    def _hook(self, wanted: frozenset[tuple[int, int]]) -> None:
        """Has exactly these modules, by stack and position, add what their rows' slots hold."""
        variant = (self._generation, wanted) if wanted else None
        if variant == self.variant:
            return
        for hook in self._hooks:
            hook.remove()
        self.variant, self._hooks = variant, []
        for stack, held in self._slots.items():
            for position, module in enumerate(held.modules):
                if (stack.first, position) in wanted:
                    self._hooks.append(module.register_forward_hook(partial(self._add, *held.of[position])))

    def _add(
        self,
        down: torch.Tensor,
        up: torch.Tensor,
        ranks: torch.Tensor,
        module: torch.nn.Module,
        inputs: tuple[torch.Tensor, ...],
        output: torch.Tensor,
    ) -> torch.Tensor:
        """A forward hook: what a module gives, and its rows' LoRAs."""
        x, rows = inputs[0], len(inputs[0])
        if isinstance(module, torch.nn.Linear):
            y = output.reshape(rows, -1, output.shape[-1])
            grouped_lora(y, x.reshape(rows, -1, x.shape[-1]), down, up, self._rows[:rows], ranks)
            return y.view(output.shape)
        if x.is_cuda:  # a pointwise convolution over channels-last pictures
            y = output.permute(0, 2, 3, 1).reshape(rows, -1, output.shape[1])
            pixels = x.permute(0, 2, 3, 1).reshape(rows, -1, x.shape[1])
            grouped_lora(y, pixels, down, up, self._rows[:rows], ranks)
            return y.view(rows, *output.shape[2:], output.shape[1]).permute(0, 3, 1, 2)
        return self._add_convolution(module, x, output, down, up, ranks.tolist())

    def _add_convolution(
        self,
        module: Any,
        x: torch.Tensor,
        output: torch.Tensor,
        down: torch.Tensor,
        up: torch.Tensor,
        ranks: list[int],
    ) -> torch.Tensor:
        for slot, rows in self._ranges:
            rank = ranks[slot]
            if rank:
                inner = down[slot, :rank].view(rank, *module.weight.shape[1:])
                low = functional.conv2d(
                    x[rows], inner, None, module.stride, module.padding, module.dilation, module.groups
                )
                output[rows] += functional.conv2d(low, up[slot, :, :rank, None, None])
        return output


def _is_pointwise(module: Any) -> bool:
    return module.kernel_size == (1, 1) and module.stride == (1, 1) and module.padding == (0, 0)


def zeros(patcher: Patcher, rank: int) -> CanonicalLora:
    """A LoRA over all of a UNet's linear layers that changes nothing, to measure with."""
    names: dict[WeightStack, list[str]] = {}
    for (component, name), (stack, _) in patcher.places.items():
        if component == UNET and stack.parameters[0].ndim == 2:
            names.setdefault(stack, []).append(name)
    return CanonicalLora(
        tuple(
            Group(
                UNET,
                "low_rank",
                tuple(found),
                (1.0,) * len(found),
                {
                    "up": stack.weights.new_zeros(len(found), stack.weights.shape[1], rank),
                    "down": stack.weights.new_zeros(len(found), rank, stack.weights.shape[2]),
                },
            )
            for stack, found in names.items()
        )
    )
