"""What of a checkpoint a LoRA may adapt: weights of linear layers, convolutions and norms, and all biases."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

UNET, TEXT_ENCODER, TEXT_ENCODER_2 = COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
"""Parts of a checkpoint that LoRAs adapt, by their names in diffusers."""
BIAS = ".bias"
"""Ends the names of biases."""
SELF_ATTENTION, QKV = "attn1", ("to_q", "to_k", "to_v")
"""A transformer block's self-attention, and its layers that take the same."""
CONSTANT = "it is constant in an engine; allowed: weights of linear layers and convolutions that engines take as inputs"
"""Why something of these is refused where engines evaluate them."""
_TEXT_MODEL = "text_model."


def adaptable_weights(root: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Module name → weight [out, in] or [out, in, kh, kw] of every linear layer and convolution below a module."""
    return {
        name: module.weight
        for name, module in root.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }


def adaptable_vectors(root: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name → [features]: a norm's weight by the norm's name, and by `name.bias` the bias of whatever has weights."""
    vectors: dict[str, torch.Tensor] = {}
    for name, module in root.named_modules():
        if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)) and module.weight is not None:
            vectors[name] = module.weight
        elif not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            continue
        if module.bias is not None:
            vectors[f"{name}{BIAS}"] = module.bias
    return vectors


def stack_order(names: Iterable[str]) -> list[str]:
    """Module names in the order in which weights of one shape are stacked.

    Modules of one role (`attn1.to_q`, `ff.net.2` …) are neighbours, and so are the roles of attention: what a LoRA
    adapts together lies together.
    """
    return sorted(names, key=lambda name: (_role(name), name))


def product_order(names: Iterable[str]) -> list[str]:
    """The same, where q, k and v of each self-attention are neighbours: one product computes all three."""

    def place(name: str) -> tuple[list[str], str, int]:
        attention, _, layer = name.rpartition(".")
        if attention.endswith(SELF_ATTENTION) and layer in QKV:
            return _role(f"{attention}.{QKV[0]}"), attention, QKV.index(layer)
        return _role(name), name, 0

    return sorted(names, key=place)


def _role(name: str) -> list[str]:
    return [part for part in reversed(name.split(".")) if not part.isdigit()]


class BaseCheckpoint(Protocol):
    """What LoRAs are made for: `networks.checkpoint.Checkpoint`."""

    @property
    def unet_config(self) -> Mapping[str, Any]:
        """The UNet's `config.json`."""

    def empty_parts(self) -> Mapping[str, torch.nn.Module]:
        """Component → network without weights, on the meta device."""

    def weight_files(self, part: str) -> list[Path]:
        """The safetensors files of a component."""


@dataclass(frozen=True)
class BaseModules:
    """Names and shapes of a checkpoint's adaptable weights, and the weights themselves where a format needs them.

    Attributes:
        shapes: Component → module name → shape of its weight, of linear layers and convolutions.
        vectors: Component → name → shape, as of `adaptable_vectors`.
        checkpoint: Where the weights lie.
    """

    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    vectors: Mapping[str, Mapping[str, tuple[int, ...]]]
    checkpoint: BaseCheckpoint

    @classmethod
    def of(cls, checkpoint: BaseCheckpoint) -> BaseModules:
        """Reads a checkpoint's configurations; weights stay where they are."""
        parts = checkpoint.empty_parts()
        shapes, vectors = (
            {
                component: {name: tuple(tensor.shape) for name, tensor in adaptable(module).items()}
                for component, module in parts.items()
            }
            for adaptable in (adaptable_weights, adaptable_vectors)
        )
        return cls(shapes, vectors, checkpoint)

    def shape(self, component: str, name: str) -> tuple[int, ...] | None:
        """Of a weight or vector; None if there is none of that name."""
        return self.shapes[component].get(name) or self.vectors[component].get(name)

    @cached_property
    def aliases(self) -> dict[str, dict[str, str]]:
        """Component → name with underscores for dots, without CLIP's `text_model` → name of a module with weights.

        Every naming of LoRA files comes to these: kohya writes underscores, and transformers has moved CLIP's modules
        in and out of `text_model`.
        """
        return {
            component: {alias(name): name for name in (*shapes, *self.vectors[component]) if not name.endswith(BIAS)}
            for component, shapes in self.shapes.items()
        }

    def weight(self, component: str, module: str) -> torch.Tensor:
        """A module's weight as the checkpoint's files hold it."""
        file, key = self._places[component, alias(module)]
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor(key)

    @cached_property
    def _places(self) -> dict[tuple[str, str], tuple[Path, str]]:
        """Component and alias → file and key of the weight."""
        places = {}
        for component in self.shapes:
            for file in self.checkpoint.weight_files(component):
                with safe_open(file, "pt") as tensors:
                    for key in tensors.keys():  # noqa: SIM118  not a dict
                        places[component, alias(key.removesuffix(".weight"))] = file, key
        return places


def alias(name: str) -> str:
    """A module's name with underscores for dots, without CLIP's `text_model`."""
    return name.removeprefix(_TEXT_MODEL).replace(".", "_").removeprefix("text_model_")
