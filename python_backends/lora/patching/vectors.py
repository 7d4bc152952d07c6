"""Norms' weights and biases with the differences of LoRAs in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..files.canonical import Group

Name = tuple[str, str]
"""Component and name, as of `modules.adaptable_vectors`."""


class Vectors:
    """The vectors of some models: they stay where they are, and W0 of those that were ever changed is kept.

    Attributes:
        touched: Those that differ from W0.
    """

    def __init__(self, parameters: Mapping[Name, torch.Tensor]) -> None:
        """Copies nothing yet."""
        self._parameters, self._pristine = parameters, dict[Name, torch.Tensor]()
        self.touched: set[Name] = set()

    def __contains__(self, name: Name) -> bool:
        """Whether there is a vector of that name."""
        return name in self._parameters

    def patch(self, terms: Sequence[tuple[Group, float]]) -> None:
        """Sets every vector that these groups or the last ones change; sums in float32, in this order.

        Args:
            terms: Groups of vectors, with the request's scales.
        """
        totals: dict[Name, torch.Tensor] = {}
        for group, scale in terms:
            for module, own, change in zip(group.modules, group.scales, group.tensors["delta"], strict=True):
                name = group.component, module
                total = totals[name] if name in totals else self._original(name).float()
                totals[name] = torch.add(total, change.flatten().to(total), alpha=scale * own)
        left = self.touched - totals.keys()
        self.touched |= totals.keys()  # a failure on the way is repaired by the next set
        for name in left:
            self._parameters[name].copy_(self._pristine[name])
        for name, total in totals.items():
            self._parameters[name].copy_(total)
        self.touched = set(totals)

    def _original(self, name: Name) -> torch.Tensor:
        if name not in self._pristine:
            self._pristine[name] = self._parameters[name].clone()
        return self._pristine[name]
