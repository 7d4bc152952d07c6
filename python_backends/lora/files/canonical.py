"""The canonical form of a LoRA: one file per content, ready to be mapped and patched in.

Terms of modules with weights and factors of one shape are stacked, in the order in which the patcher stacks the weights
themselves (`modules.stack_order`): patching is then one batched operation per stack, not one per module.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import save_file

from .modules import BIAS

if TYPE_CHECKING:
    from pathlib import Path

    import torch


@dataclass(frozen=True)
class Group:
    """Terms of one form over modules whose weights, and factors, have one shape.

    Attributes:
        component: `unet`, `text_encoder` or `text_encoder_2`.
        form: See `terms`.
        modules: n names, in stack order; of norms and biases as of `adaptable_vectors`.
        scales: n numbers, alpha ÷ rank.
        tensors: As of one term, with a leading n.
    """

    component: str
    form: str
    modules: tuple[str, ...]
    scales: tuple[float, ...]
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class CanonicalLora:
    """A LoRA whose every tensor is known to fit the checkpoint.

    Attributes:
        groups: What it adds.
        notes: Sentences about its file: what was assumed, or left out.
    """

    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def modules(self) -> dict[str, int]:
        """Component → number of modules that the LoRA adapts."""
        return dict(Counter(component for component, _ in self.adapted))

    @cached_property
    def adapted(self) -> frozenset[tuple[str, str]]:
        """Component and name of each module of which something is changed."""
        return frozenset((group.component, name.removesuffix(BIAS)) for group in self.groups for name in group.modules)

    def save(self, path: Path) -> None:
        """Writes the canonical file."""
        heads = [
            {"component": g.component, "form": g.form, "modules": g.modules, "scales": g.scales} for g in self.groups
        ]
        tensors = {f"{i}.{name}": t for i, group in enumerate(self.groups) for name, t in group.tensors.items()}
        texts = {"groups": heads, "modules": self.modules, "notes": self.notes}
        save_file(tensors, path, {name: json.dumps(value) for name, value in texts.items()})

    @classmethod
    def open(cls, path: Path) -> CanonicalLora:
        """Maps a file that `save` wrote; its tensors are views of it."""
        with safe_open(path, "pt") as file:
            heads, notes = json.loads(file.metadata()["groups"]), json.loads(file.metadata()["notes"])
            tensors: list[dict[str, torch.Tensor]] = [{} for _ in heads]
            for key in file.keys():  # noqa: SIM118  not a dict
                index, name = key.split(".", 1)
                tensors[int(index)][name] = file.get_tensor(key)
        return cls(
            tuple(
                Group(head["component"], head["form"], tuple(head["modules"]), tuple(head["scales"]), parts)
                for head, parts in zip(heads, tensors, strict=True)
            ),
            tuple(notes),
        )


def adapted_modules(path: Path) -> dict[str, int]:
    """`CanonicalLora.modules` of a canonical file, from its header alone."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["modules"])


def notes_of(path: Path) -> list[str]:
    """`CanonicalLora.notes` of a canonical file, from its header alone."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["notes"])
