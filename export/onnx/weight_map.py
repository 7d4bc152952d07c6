"""Which initializer of a graph holds which module's weight, and what a set of LoRAs makes of them.

The graphs' weights are patched as `lora.patcher` patches a network's: W0 + Σ scale · delta over the whole set, from
pristine weights every time, in float32, rounded once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from ...python_backends.lora.terms import delta

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from ...python_backends.lora.canonical import CanonicalLora, Group

SUFFIX = ".weights.json"
TRANSPOSED = ".T"
"""Ends the name of an initializer that holds a weight's transpose."""


@dataclass(frozen=True)
class MappedWeight:
    """Where a graph holds a module's weight.

    Attributes:
        initializer: Its name.
        transposed: Whether it holds [in, out] of a weight [out, in].
        shape: Of the module's weight: [out, in] or [out, in, kh, kw].
    """

    initializer: str
    transposed: bool
    shape: tuple[int, ...]

    @property
    def initializer_shape(self) -> tuple[int, ...]:
        """Of the initializer's tensor."""
        return self.shape[::-1] if self.transposed else self.shape

    def as_module(self, tensor: torch.Tensor) -> torch.Tensor:
        """The initializer's tensor as the module has it; a view."""
        return tensor.T if self.transposed else tensor

    def as_initializer(self, weight: torch.Tensor) -> torch.Tensor:
        """The module's weight as the initializer has it; contiguous."""
        return (weight.T if self.transposed else weight).contiguous()


@dataclass(frozen=True)
class WeightMap:
    """The adaptable weights of one graph.

    Attributes:
        component: Part of the checkpoint that the graph is of: `unet`, `text_encoder`, `text_encoder_2`; another
            network's name where no LoRA adapts it.
        weights: Module name, relative to the network → place.
    """

    component: str
    weights: Mapping[str, MappedWeight]

    def save(self, path: Path) -> None:
        """Writes `{"module": {"initializer": …, "transposed": …, "shape": …}, …}`."""
        path.write_text(json.dumps({name: asdict(place) for name, place in self.weights.items()}, indent=1), "utf-8")

    @classmethod
    def load(cls, path: Path, component: str) -> WeightMap:
        """Reads what `save` wrote."""
        places = json.loads(path.read_text("utf-8"))
        return cls(
            component,
            {
                name: MappedWeight(place["initializer"], place["transposed"], tuple(place["shape"]))
                for name, place in places.items()
            },
        )

    def initializers(self, loras: Iterable[tuple[CanonicalLora, float]]) -> set[str]:
        """Names of the initializers that a set changes."""
        return {self.weights[module].initializer for module in self._terms(loras)}

    def _terms(self, loras: Iterable[tuple[CanonicalLora, float]]) -> dict[str, list[tuple[Group, int, float]]]:
        """Module of this graph → (group, its position there, the request's scale), in the set's order."""
        terms: dict[str, list[tuple[Group, int, float]]] = {}
        for lora, scale in loras:
            for group in lora.groups:
                if group.component == self.component:
                    for position, module in enumerate(group.modules):
                        if module in self.weights:
                            terms.setdefault(module, []).append((group, position, scale))
        return terms

    @torch.no_grad()
    def refit_tensors(
        self,
        loras: Sequence[tuple[CanonicalLora, float]],
        pristine: Mapping[str, torch.Tensor],
        refitted: Iterable[str] = (),
    ) -> dict[str, torch.Tensor]:
        """What a graph's initializers must become for a set of LoRAs, and no others, to be patched in.

        Args:
            loras: (LoRA, scale) pairs; the sum is formed in this order. Modules outside of this graph are left out.
            pristine: Initializer → tensor as the graph was exported with; only those that change are read. They say
                where it is computed.
            refitted: Initializers that the set before this one changed: they are restored.

        Returns:
            Initializer → tensor of its shape and type, contiguous, for every initializer that has to be set.

        Raises:
            KeyError: If `pristine` lacks one of them.
        """
        terms = self._terms(loras)
        patched = {}
        for module, added in terms.items():
            place = self.weights[module]
            weight = place.as_module(pristine[place.initializer])
            patched[place.initializer] = place.as_initializer(_patched(weight, added))
        return {name: pristine[name] for name in refitted if name not in patched} | patched


def _patched(weight: torch.Tensor, terms: Sequence[tuple[Group, int, float]]) -> torch.Tensor:
    base = weight.flatten(1).float()
    total = base.clone()
    for group, position, scale in terms:
        tensors = {name: tensor[position].to(weight.device) for name, tensor in group.tensors.items()}
        across = [tensors.pop(name) for name in ("row", "column") if name in tensors]
        total.add_(delta(group.form, tensors), alpha=group.scales[position] * scale)
        for coefficients in across:  # DoRA rescales the weight itself
            total.addcmul_(base, coefficients, value=scale)
    return total.to(weight.dtype).unflatten(1, weight.shape[1:])
