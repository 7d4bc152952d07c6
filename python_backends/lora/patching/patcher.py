"""W ← W0 + Σ scale · delta, over all modules of a model at once.

Weights of one shape are made views of one tensor, and so are the deltas of a canonical LoRA: a swap is a batched matrix
product per shape and rank, over just the modules that the old or the new set adapts. On a GPU, sets of low-rank LoRAs
are a single launch of `kernels.lora_patch`, in place: addresses never change, so CUDA graphs stay valid. On the CPU
modules are pointed to patched weights, which can be kept. Norms' weights and biases, which few LoRAs have, are patched
one by one. W0 stays, so nothing drifts, and every set gives the same bits whatever was patched in before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from ....kernels.kernel_source import TYPES
from ....kernels.lora_patch import lora_patch
from ....kernels.lora_tables import FactorGroup, WeightTable
from ...common.errors import InvalidRequestError
from ..files.modules import CONSTANT, adaptable_vectors, adaptable_weights, product_order, stack_order
from .prepared import PreparedLora
from .staging import Staging
from .vectors import Vectors
from .weight_stack import Patched, StackedTerms, WeightStack

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from ....kernels.lora_tables import PackedLora
    from ..files.canonical import CanonicalLora, Group


@dataclass(frozen=True)
class KeptWeights:
    """Weights with one set of LoRAs in them."""

    weights: tuple[tuple[WeightStack, Patched], ...]

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(patched.weights.nbytes for _, patched in self.weights)


class Patcher:
    """The adaptable weights of some models, and the LoRAs that are patched into them.

    Patch between calls of the models, never during one.

    Attributes:
        places: Component and name of a module → the stack that has its weight, and the position there.
        after_patch: Called at the end of each `apply`, where somebody has to know what it changed.
    """

    after_patch: Callable[[], None] | None = None

    def __init__(
        self, parts: Mapping[str, torch.nn.Module], one_launch: bool | None = None, in_place: bool | None = None
    ) -> None:
        """Rearranges the weights of the models.

        Args:
            parts: Component (`unet`, `text_encoder`, `text_encoder_2`) → model, on its device and of its precision.
            one_launch: Whether sets of low-rank LoRAs are one call of `kernels.lora_patch`; by default on a GPU.
            in_place: Whether weights stay where they are; always with `one_launch`, by default on a GPU.
        """
        on_gpu = next(next(iter(parts.values())).parameters()).device.type == "cuda"
        self._one_launch = on_gpu if one_launch is None else one_launch
        in_place = self._one_launch or (on_gpu if in_place is None else in_place)
        self.places: dict[tuple[str, str], tuple[WeightStack, int]] = {}
        for component, model in parts.items():
            weights = adaptable_weights(model)
            for names in _by_shape(weights, product_order if in_place else stack_order):
                stack = WeightStack([weights[name] for name in names], len(self.places), in_place)
                self.places |= {(component, name): (stack, position) for position, name in enumerate(names)}
        self._vectors = Vectors(
            {
                (component, name): vector
                for component, model in parts.items()
                for name, vector in adaptable_vectors(model).items()
            }
        )
        self._components = frozenset(parts)
        self._fixed: dict[str, frozenset[str]] = {}
        self._modules = list(self.places.values())  # by their numbers
        self._stacks = list(dict.fromkeys(stack for stack, _ in self._modules))

    def fix(self, component: str, weights: Collection[str]) -> None:
        """From now on LoRAs are refused that change norms, biases or some weights: what reads them does not follow.

        Args:
            component: One of the models.
            weights: Modules of those that are constant there.
        """
        self._fixed[component] = frozenset(weights)

    def joined(self, component: str, names: Sequence[str]) -> torch.Tensor | None:
        """Weights of linear layers as one, [their outs, in]: a view of what LoRAs are patched into.

        None where they do not lie there one after another, or may come to lie elsewhere.
        """
        found = self.neighbours(component, names)
        return None if found is None else found[0].weights[found[1]].flatten(0, 1)

    def neighbours(self, component: str, names: Sequence[str]) -> tuple[WeightStack, slice] | None:
        """Where the same weights lie; None as there."""
        (stack, first), *others = (self.places[component, name] for name in names)
        follow = [(stack, position) for position in range(first + 1, first + len(names))]
        if not stack.in_place or stack.parameters[first].ndim != 2 or others != follow:
            return None
        return stack, slice(first, first + len(names))

    def warm_up(self) -> None:
        """On a GPU: copies W0, pins memory, compiles the kernel for every type of factors; no LoRA pays for it then."""
        if not self._one_launch:
            return
        self._staging.send(())
        _, out, columns = self._stacks[0].weights.shape
        for dtype in TYPES:
            factors = torch.zeros(1, out, 1, dtype=dtype), torch.zeros(1, 1, columns, dtype=dtype)
            nothing = self._table.pack([FactorGroup([0], *factors, [1.0])])
            lora_patch(self._table, self._table.plan([(nothing, 1.0)]))
        lora_patch(self._table, self._table.plan([], restored=[0]))

    def uploads_to(self) -> torch.device | None:
        """Where `prepare` puts LoRAs, if it does; from now on another thread may call it, beside the models' calls."""
        return self._staging.device if self._one_launch else None  # table and staging are made by this thread

    @cached_property
    def _table(self) -> WeightTable:
        """All weights and W0, for the kernel: built before the first patch."""
        table = WeightTable([parameter for stack in self._stacks for parameter in stack.parameters])
        for stack in self._stacks:
            stack.use_pristine(table)
        return table

    @cached_property
    def _staging(self) -> Staging:
        return Staging(self._table.pristine.device)

    @torch.no_grad()
    def prepare(self, lora: CanonicalLora) -> CanonicalLora:
        """A LoRA as `apply` needs it: on a GPU it is packed there, which is most of the work of a first swap.

        What is prepared needs the LoRA's file no more. On the CPU it is the LoRA itself.

        Raises:
            InvalidRequestError: If it changes what is constant.
        """
        if self._fixed:
            self._check_fixed(lora)
        if not self._one_launch or isinstance(lora, PreparedLora):
            return lora
        sent = self._staging.send([group for group in lora.groups if group.component in self._components])
        groups = [group if self._is_of_vectors(group) else self._stack(group).in_order(group) for group in sent]
        if any(group.form != "low_rank" or group.tensors.keys() != {"up", "down"} for group in groups):
            return PreparedLora(tuple(groups))
        numbers = [[self._number(group.component, module) for module in group.modules] for group in groups]
        packed = self._table.pack(
            [
                FactorGroup(modules, group.tensors["up"], group.tensors["down"], group.scales)
                for modules, group in zip(numbers, groups, strict=True)
            ]
        )
        return PreparedLora.of(groups, packed)

    @torch.no_grad()
    def apply(self, loras: Iterable[tuple[CanonicalLora, float]]) -> int:
        """Makes these LoRAs, and no others, be patched in.

        Args:
            loras: (LoRA, scale) pairs, prepared or not; the sum is formed in this order.

        Returns:
            Number of modules that they adapt.

        Raises:
            InvalidRequestError: As `prepare`; the weights are as they were.
        """
        prepared = [(self.prepare(lora), scale) for lora, scale in loras]
        packed = [
            (lora.packed, scale)
            for lora, scale in prepared
            if isinstance(lora, PreparedLora) and lora.packed is not None
        ]
        groups = [
            (group, scale) for lora, scale in prepared for group in lora.groups if group.component in self._components
        ]
        self._vectors.patch([(group, scale) for group, scale in groups if self._is_of_vectors(group)])
        if self._one_launch and len(packed) == len(prepared):
            self._apply_in_one_launch(packed)
        else:
            self._apply_by_stack([(group, scale) for group, scale in groups if not self._is_of_vectors(group)])
        if self.after_patch is not None:
            self.after_patch()
        adapted = frozenset[tuple[str, str]]().union(*(lora.adapted for lora, _ in prepared))
        return sum(component in self._components for component, _ in adapted)

    def kept(self) -> KeptWeights | None:
        """What is patched in, to be taken again later; None where that is in place, or in vectors too."""
        if self._vectors.touched or any(stack.in_place for stack in self._stacks):
            return None
        return KeptWeights(tuple((stack, stack.current) for stack in self._stacks if stack.current is not None))

    @torch.no_grad()
    def take(self, kept: KeptWeights) -> None:
        """Has the models compute with what was patched in before."""
        self._vectors.patch(())
        weights = dict(kept.weights)
        for stack in self._stacks:
            if stack.touched or stack in weights:
                stack.point_to(weights.get(stack))

    def _check_fixed(self, lora: CanonicalLora) -> None:
        for group in lora.groups:
            constant = self._fixed.get(group.component)
            if constant is not None and (self._is_of_vectors(group) or not constant.isdisjoint(group.modules)):
                name = min(constant.intersection(group.modules) or group.modules)
                raise InvalidRequestError(f"a LoRA changes {group.component}.{name}: {CONSTANT}")

    def _is_of_vectors(self, group: Group) -> bool:
        return (group.component, group.modules[0]) in self._vectors

    def _stack(self, group: Group) -> WeightStack:
        return self.places[group.component, group.modules[0]][0]

    def _apply_in_one_launch(self, loras: Sequence[tuple[PackedLora, float]]) -> None:
        left = {stack.first + position for stack in self._stacks for position in stack.touched}
        wanted = {module for lora, _ in loras for module in lora.modules.tolist()}
        plan = self._table.plan(loras, restored=left)
        self._touch(wanted | left)  # a failure on the way is repaired by the next set
        lora_patch(self._table, plan)
        self._touch(wanted)

    def _apply_by_stack(self, groups: Iterable[tuple[Group, float]]) -> None:
        terms: dict[WeightStack, list[StackedTerms]] = {stack: [] for stack in self._stacks if stack.touched}
        for group, scale in groups:
            places = [self.places[group.component, module] for module in group.modules]
            index = {position: number for number, (_, position) in enumerate(places)}
            terms.setdefault(places[0][0], []).append(StackedTerms(group, scale, index))
        for stack, stacked in terms.items():
            stack.patch(stacked)

    def _number(self, component: str, module: str) -> int:
        stack, position = self.places[component, module]
        return stack.first + position

    def _touch(self, modules: Iterable[int]) -> None:
        for stack in self._stacks:
            stack.touched.clear()
        for stack, position in map(self._modules.__getitem__, modules):
            stack.touched.add(position)


def _by_shape(weights: Mapping[str, torch.Tensor], order: Callable[[Iterable[str]], list[str]]) -> list[list[str]]:
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name in order(weights):
        shapes.setdefault(tuple(weights[name].shape), []).append(name)
    return list(shapes.values())
