"""All engines of some directories on one GPU, with references and patchers, for `verify-engines`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...python_backends.lora.files.canonicaliser import Canonicaliser
from ...python_backends.lora.files.modules import UNET
from ...python_backends.lora.patching.patcher import Patcher
from ...python_backends.networks.checkpoint import Checkpoint
from ...python_backends.networks.digests import weights_digest
from ...python_backends.tensorrt.engine import Engine, parameters
from ...python_backends.tensorrt.flavours import FLAVOURS
from ...python_backends.tensorrt.metadata import EngineMetadata, EngineMismatchError
from ...python_backends.tensorrt.tensor_names import DECODER, ENCODER
from .graph import Graph
from .references import OnnxReference, TorchReference
from .verification import Case, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ...python_backends.lora.files.canonical import CanonicalLora
    from .references import Runnable
    from .verification import Comparison

HALVES = (ENCODER, DECODER)


@dataclass(frozen=True)
class _UNet:
    """What a directory's halves read, and what patches it."""

    weights: Mapping[str, torch.Tensor]
    digest: str
    patcher: Patcher


class LoadedEngines:
    """Engines and what they are compared with.

    Halves of a UNet whose checkpoint is given read its weights, and are compared with it; other engines read the
    weights of their ONNX files, and are compared with ONNX Runtime.
    """

    def __init__(self, directories: Sequence[Path], checkpoint: Path | None, device: int) -> None:
        """Loads everything.

        Raises:
            EngineMismatchError: If there are no engines, or they are for another machine or other ONNX files.
            GraphError: If an ONNX file is none.
            TensorRTUnavailableError: Without TensorRT or the GPU.
            CheckpointError: If the checkpoint is none.
        """
        self._device = torch.device("cuda", device)
        self._checkpoint = None if checkpoint is None else Checkpoint(checkpoint.resolve())
        self._patchers: list[Patcher] = []
        self._cases: list[Case] = []
        for directory in directories:
            found = sorted(plan.stem for plan in directory.glob("*.plan"))
            if not found:
                raise EngineMismatchError(f"{directory} has no engines; build them: swiftdiffusion build-engines")
            read = [EngineMetadata.read(directory, name) for name in found]
            unet = self._unet([metadata.precision for metadata in read if metadata.name in HALVES])
            engines = [self._load(directory, metadata, unet) for metadata in read]
            if unet is not None:
                unet.patcher.fix(UNET, {module for engine in engines for module in engine.constants})

    def verify(self, loras: Sequence[Path], on_progress: Callable[[], object]) -> list[Comparison]:
        """Compares everything; with LoRAs, the UNet's halves with each of them, and back.

        Args:
            loras: Files.
            on_progress: Called after each comparison.

        Raises:
            InvalidRequestError: If a file is no LoRA of the checkpoint, or changes what is constant in the engines.
        """
        others = [case for case in self._cases if case.engine not in HALVES]
        halves = [case for case in self._cases if case.engine in HALVES]
        results = verify(others, {}, lambda loras: None, on_progress)
        if not loras or not halves or self._checkpoint is None:
            return results + verify(halves, {}, lambda loras: None, on_progress)
        canonicaliser = Canonicaliser(self._checkpoint)
        sets = {path.stem: [(canonicaliser.read(path), 1.0)] for path in loras}

        def apply(wanted: list[tuple[CanonicalLora, float]]) -> None:
            for patcher in self._patchers:
                patcher.apply(wanted)

        return results + verify(halves, sets, apply, on_progress)

    def _unet(self, precisions: Sequence[str]) -> _UNet | None:
        """What the halves of a directory read, of the first one's precision; None without halves or checkpoint."""
        if self._checkpoint is None or not precisions:
            return None
        network = self._checkpoint.load_unet(self._device, getattr(torch, precisions[0]))
        digest = weights_digest(network)
        patcher = Patcher({UNET: network}, in_place=True)
        self._patchers.append(patcher)
        return _UNet(parameters(network), digest, patcher)

    def _load(self, directory: Path, metadata: EngineMetadata, unet: _UNet | None) -> Engine:
        onnx, name, flavour = Path(metadata.onnx), metadata.name, FLAVOURS[metadata.runtime]
        metadata.check_sources(directory, onnx)
        reference: Runnable
        if unet is not None and name in HALVES:
            engine = Engine.load(directory, name, self._device, flavour, unet.weights, unet.digest)
            reference = TorchReference(self._exact_unet, name)
        else:
            defaults = Graph.read(onnx, name).defaults(metadata.weights)
            weights = {each: tensor.to(self._device) for each, tensor in defaults.items()}
            engine = Engine.load(directory, name, self._device, flavour, weights)
            reference = OnnxReference(onnx / f"{name}.onnx")
        variant = f"{flavour.name}, {'plugins' if metadata.plugins else f'norms: {metadata.norms}'}"
        self._cases += Case.of(metadata, variant, engine, reference)
        return engine

    @cached_property
    def _exact_unet(self) -> torch.nn.Module:
        assert self._checkpoint is not None
        network = self._checkpoint.load_unet(self._device, torch.float32)
        self._patchers.append(Patcher({UNET: network}))
        return network
