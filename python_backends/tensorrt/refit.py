"""LoRAs in engines: the patcher of PyTorch's weights, and the engines' initialisers set to what it made of them.

So an engine gets the very numbers that the same network in PyTorch has: W0 + Σ scale · delta, summed in float32 from
untouched weights every time and rounded once. Whatever the last set changed is set as well, else a part of it would
stay behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..common.errors import InvalidRequestError
from ..lora.files.modules import UNET, adaptable_weights
from ..lora.patching.patcher import Patcher
from .engine import logger, torch_type
from .metadata import EngineMismatchError
from .tensor_names import DECODER, ENCODER
from .versions import require_tensorrt
from .weights import EngineWeights, read_weight_map

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from ..lora.files.canonical import CanonicalLora
    from .engine import Engine
    from .halves import EngineHalves
    from .weights import WeightMap


class RefitError(RuntimeError):
    """TensorRT did not take new weights; the engine may hold some of them, and the next set repairs it."""


class EngineRefitter:
    """TensorRT's refitter of one engine, from memory of its GPU."""

    def __init__(self, engine: Engine) -> None:
        """Starts with nothing offered.

        Raises:
            EngineMismatchError: If the engine was built without refitting.
        """
        trt = require_tensorrt()
        if not engine.cuda_engine.refittable:
            raise EngineMismatchError("the engine was built without refitting, and cannot take LoRAs")
        self._engine = engine
        self._refitter = trt.Refitter(engine.cuda_engine, logger())
        self._offered: dict[str, torch.Tensor] = {}

    def offer(self, tensors: Mapping[str, torch.Tensor]) -> list[str]:
        """Says where new weights are (initialiser → tensor); gives the names of others that have to come with them.

        Raises:
            RefitError: If a name, type or size is not the engine's.
        """
        trt = require_tensorrt()
        for name, tensor in tensors.items():
            known = self._offered.get(name)
            if known is not None and known.data_ptr() == tensor.data_ptr():
                continue
            wanted = self._refitter.get_weights_prototype(name)
            if wanted.size != tensor.numel() or torch_type(wanted.dtype) != tensor.dtype:
                raise RefitError(
                    f"{name} is {tensor.numel()} values of {tensor.dtype}; "
                    f"the engine has {wanted.size} of {wanted.dtype}"
                )
            weights = trt.Weights(wanted.dtype, tensor.data_ptr(), tensor.numel())
            if not self._refitter.set_named_weights(name, weights, trt.TensorLocation.DEVICE):
                raise RefitError(f"TensorRT does not take {name}; its log says why")
            self._offered[name] = tensor
        return list(self._refitter.get_missing_weights())

    def refit(self) -> None:
        """Takes everything that was offered, now or earlier, as it is in memory.

        Enqueued on PyTorch's current stream, for which the engine's runs wait.

        Raises:
            RefitError: If TensorRT fails.
        """
        with torch.cuda.device(self._engine.device):
            if not self._refitter.refit_cuda_engine_async(torch.cuda.current_stream().cuda_stream):
                raise RefitError("TensorRT could not refit the engine; its log says why")


def unet_patcher(unet: torch.nn.Module, halves: EngineHalves, engines: Path, dtype: torch.dtype) -> EnginePatcher:
    """Patches LoRAs into a UNet's two engines.

    Args:
        unet: On the engines' device, unpatched.
        halves: The engines.
        engines: Their directory.
        dtype: Of their weights.

    Raises:
        EngineMismatchError: If they do not fit together, or were built without refitting.
    """
    built = halves.encoder.inputs["latents"]
    if built != dtype:
        raise EngineMismatchError(
            f"the engines in {engines} compute in {built}; wanted: the repository's --dtype, {dtype}"
        )
    parts = ((ENCODER, halves.encoder), (DECODER, halves.decoder))
    refitted = [(UNET, EngineRefitter(engine), read_weight_map(engines, name)) for name, engine in parts]
    return EnginePatcher({UNET: unet}, refitted, dtype)


class EnginePatcher:
    """Does for engines what `lora.patching.patcher.Patcher` does for networks of PyTorch.

    The networks' adaptable weights stay on the GPU beside the engines': they are what the refitter reads.
    Patch between calls of the engines, never during one, and on the stream from which they are called.
    """

    def __init__(
        self,
        parts: Mapping[str, torch.nn.Module],
        engines: Iterable[tuple[str, EngineRefitter, WeightMap]],
        dtype: torch.dtype,
    ) -> None:
        """Rearranges the networks' weights.

        Args:
            parts: Component (`unet`, `text_encoder`, `text_encoder_2`) → network, on the engines' device, unpatched.
            engines: Component, refitter and weight map of each engine; a network may be in several.
            dtype: Of the engines' initialisers.

        Raises:
            EngineMismatchError: If engines and networks do not fit together, or no engine holds some adaptable weight.
        """
        self._patcher = Patcher(parts, in_place=True)
        self._weights = modules = {component: adaptable_weights(network) for component, network in parts.items()}
        self._engines = [
            (component, refitter, EngineWeights(weights, modules[component], dtype))
            for component, refitter, weights in engines
        ]
        for component, names in modules.items():
            held = {name for of, _, weights in self._engines if of == component for name in weights.map}
            if missing := sorted(set(names) - held):
                raise EngineMismatchError(
                    f"no engine holds {len(missing)} of the weights of {component} that LoRAs adapt, "
                    f"such as {missing[0]}"
                )
        self._touched: set[tuple[str, str]] = set()

    def warm_up(self) -> None:
        """As `Patcher.warm_up`."""
        self._patcher.warm_up()

    def uploads_to(self) -> torch.device | None:
        """As `Patcher.uploads_to`."""
        return self._patcher.uploads_to()

    def prepare(self, lora: CanonicalLora) -> CanonicalLora:
        """As `Patcher.prepare`.

        Raises:
            InvalidRequestError: If the LoRA changes norms or biases, which engines keep as they are.
        """
        for group in lora.groups:
            if group.component in self._weights and group.modules[0] not in self._weights[group.component]:
                raise InvalidRequestError(
                    f"LORAS: a LoRA changes {group.component}.{group.modules[0]}; "
                    "allowed with the runtime tensorrt: those of linear layers' and convolutions' weights"
                )
        return self._patcher.prepare(lora)

    @torch.no_grad()
    def apply(self, loras: Iterable[tuple[CanonicalLora, float]]) -> int:
        """Makes these LoRAs, and no others, be in the engines.

        Args:
            loras: (LoRA, scale) pairs; the sum is formed in this order.

        Returns:
            Number of modules that they adapt.

        Raises:
            InvalidRequestError: As `prepare`; the engines are as they were.
            RefitError: If TensorRT fails.
        """
        loras = [(self.prepare(lora), scale) for lora, scale in loras]
        components = {component for component, _, _ in self._engines}
        wanted = {
            (group.component, module)
            for lora, _ in loras
            for group in lora.groups
            if group.component in components
            for module in group.modules
        }
        self._touched |= wanted  # until all is well, so that a failure half-way is repaired by the next set
        count = self._patcher.apply(loras)
        for component, refitter, weights in self._engines:
            names = sorted(module for of, module in self._touched if of == component and module in weights.map)
            if names:
                self._refit(refitter, weights, names)
        self._touched = wanted
        return count

    def _refit(self, refitter: EngineRefitter, weights: EngineWeights, names: Iterable[str]) -> None:
        missing = refitter.offer(weights.update(names))
        more = [weights.module_of(initializer) for initializer in missing]
        known = [name for name in more if name is not None]
        if len(known) < len(more):
            lacking = missing[more.index(None)]
            raise RefitError(f"TensorRT wants {lacking} together with LoRA weights; no module's weight is called so")
        if known and (still := refitter.offer(weights.update(known))):
            raise RefitError(f"TensorRT wants more and more weights: {', '.join(still[:3])} …")
        refitter.refit()
