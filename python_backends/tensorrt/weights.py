"""Initialisers of ONNX graphs and engines as LoRAs change them: which, and to what. Knows nothing of TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..lora.files.modules import TEXT_ENCODER, TEXT_ENCODER_2, UNET
from .metadata import EngineMismatchError
from .tensor_names import DECODER, ENCODER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

TRANSPOSED = ".T"
"""Ends the name of an initialiser that holds a weight's transpose."""

ADAPTED = {
    ENCODER: UNET,
    DECODER: UNET,
    TEXT_ENCODER: TEXT_ENCODER,
    TEXT_ENCODER_2: TEXT_ENCODER_2,
}
"""Engines that LoRAs adapt → the component that they are of. All others keep their weights, and all their fusions."""


class MappedWeight(BaseModel):
    """Where a graph, or the engine that is built from it, holds a module's weight.

    Attributes:
        initializer: Its name.
        transposed: Whether it holds [in, out] of a weight [out, in].
        shape: Of the module's weight: [out, in] or [out, in, kh, kw].
    """

    model_config = ConfigDict(frozen=True)

    initializer: str
    transposed: bool
    shape: tuple[int, ...]

    @property
    def initializer_shape(self) -> tuple[int, ...]:
        """Of the initialiser."""
        return self.shape[::-1] if self.transposed else self.shape


WeightMap = dict[str, MappedWeight]
"""Module name, relative to its network → place."""


def write_weight_map(directory: Path, name: str, weights: WeightMap) -> None:
    """`NAME.weights.json`; nothing for a network that no LoRA adapts."""
    if name in ADAPTED:
        text = TypeAdapter(WeightMap).dump_json(weights, indent=1)
        (directory / f"{name}.weights.json").write_bytes(text + b"\n")


def read_weight_map(directory: Path, name: str) -> WeightMap:
    """`NAME.weights.json`; empty for a network that no LoRA adapts.

    Raises:
        EngineMismatchError: If it is not what the exporter writes.
    """
    if name not in ADAPTED:
        return {}
    path = directory / f"{name}.weights.json"
    try:
        return TypeAdapter(WeightMap).validate_json(path.read_bytes())
    except FileNotFoundError:
        raise EngineMismatchError(f"{path} is missing; export the ONNX files again") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise EngineMismatchError(f"{path}: {place}: {first['msg']}; export the ONNX files again") from None


class EngineWeights:
    """The initialisers of one engine that follow the weights of a network's modules.

    A module's weight and its initialiser are the same memory where they look the same; a transposed one, or one of
    another type, is a copy at an address of its own that does not change either.

    Attributes:
        map: Module name → place.
    """

    def __init__(self, weights: WeightMap, modules: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        """Allocates nothing.

        Args:
            weights: Of the engine.
            modules: Module name → weight of the network, patched in place, at an address that does not change.
            dtype: Of the initialisers.

        Raises:
            EngineMismatchError: If a module of the map is not among them, or has another shape.
        """
        for name, place in weights.items():
            found = tuple(modules[name].shape) if name in modules else None
            if found != place.shape or (place.transposed and len(place.shape) != 2):
                raise EngineMismatchError(
                    f"the engine holds {name} as {'the transpose of ' * place.transposed}{list(place.shape)}; "
                    f"the checkpoint's is {'missing' if found is None else list(found)}"
                )
        self.map = weights
        self._modules, self._dtype = modules, dtype
        self._module_of = {place.initializer: name for name, place in weights.items()}
        self._copies: dict[str, torch.Tensor] = {}

    def module_of(self, initializer: str) -> str | None:
        """The module whose weight an initialiser is; None for one of another kind."""
        return self._module_of.get(initializer)

    @torch.no_grad()
    def update(self, modules: Iterable[str]) -> dict[str, torch.Tensor]:
        """Brings initialisers up to date with their modules.

        Args:
            modules: Names; those that the engine does not hold are passed over.

        Returns:
            Initialiser → what it is now, contiguous, of the engine's type, in memory that stays.
        """
        return {self.map[name].initializer: self._current(name) for name in modules if name in self.map}

    def _current(self, name: str) -> torch.Tensor:
        place, weight = self.map[name], self._modules[name].detach()
        looks = weight.T if place.transposed else weight
        if looks.is_contiguous() and looks.dtype == self._dtype:
            return looks
        copy = self._copies.get(name)
        if copy is None:
            copy = self._copies[name] = torch.empty(looks.shape, dtype=self._dtype, device=looks.device)
        return copy.copy_(looks)
