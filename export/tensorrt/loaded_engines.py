"""All engines of some directories on one GPU, with references and patchers, for `verify-engines`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...python_backends.lora.files.canonicaliser import Canonicaliser
from ...python_backends.lora.files.modules import UNET
from ...python_backends.lora.patching.patcher import Patcher
from ...python_backends.networks.checkpoint import Checkpoint
from ...python_backends.tensorrt.engine import Engine
from ...python_backends.tensorrt.metadata import EngineMetadata, EngineMismatchError
from ...python_backends.tensorrt.refit import EnginePatcher, EngineRefitter
from ...python_backends.tensorrt.tensor_names import DECODER, ENCODER
from ...python_backends.tensorrt.weights import read_weight_map
from .references import OnnxReference, TorchReference
from .verification import cases, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ...python_backends.lora.files.canonical import CanonicalLora
    from .references import Runnable
    from .verification import Case, Comparison

HALVES = (ENCODER, DECODER)


class LoadedEngines:
    """Engines and what they are compared with.

    Engines without a checkpoint to compare with, and those of other networks, are compared with ONNX Runtime.
    """

    def __init__(self, onnx: Path, directories: Sequence[Path], checkpoint: Path | None, device: int) -> None:
        """Loads everything.

        Raises:
            EngineMismatchError: If there are no engines, or they are for another machine or other ONNX files.
            TensorRTUnavailableError: Without TensorRT or the GPU.
            CheckpointError: If the checkpoint is none.
        """
        self._device = torch.device("cuda", device)
        self._checkpoint = None if checkpoint is None else Checkpoint(checkpoint.resolve())
        self._onnx = onnx
        self._references: dict[str, Runnable] = {}
        self._unet: torch.nn.Module | None = None
        self._cases: list[Case] = []
        self._halves: list[tuple[Path, EngineMetadata, Engine]] = []
        for directory in directories:
            found = sorted(plan.stem for plan in directory.glob("*.plan"))
            if not found:
                raise EngineMismatchError(f"{directory} has no engines; build them: swiftdiffusion build-engines")
            for name in found:
                self._load(directory, name)

    def verify(self, loras: Sequence[Path], on_progress: Callable[[], object]) -> list[Comparison]:
        """Compares everything; with LoRAs, the UNet's halves with each of them, and back.

        Args:
            loras: Files.
            on_progress: Called after each comparison.

        Raises:
            InvalidRequestError: If a file is no LoRA of the checkpoint.
            RefitError: If TensorRT does not take the weights.
        """
        others = [case for case in self._cases if case.engine not in HALVES]
        halves = [case for case in self._cases if case.engine in HALVES]
        results = verify(others, {}, lambda loras: None, on_progress)
        if not loras or not halves or self._checkpoint is None:
            return results + verify(halves, {}, lambda loras: None, on_progress)
        canonicaliser = Canonicaliser(self._checkpoint)
        sets = {path.stem: [(canonicaliser.read(path), 1.0)] for path in loras}
        patchers = self._patchers(self._checkpoint)

        def apply(wanted: list[tuple[CanonicalLora, float]]) -> None:
            for patcher in patchers:
                patcher.apply(wanted)

        return results + verify(halves, sets, apply, on_progress)

    def _load(self, directory: Path, name: str) -> None:
        metadata = EngineMetadata.read(directory, name)
        metadata.check_sources(self._onnx)
        engine = Engine.load(directory, name, self._device)
        variant = "plugins" if metadata.plugins else "no plugins"
        self._cases += cases(name, variant, metadata.precision, engine, self._reference(name), metadata.profiles)
        if name in HALVES:
            self._halves.append((directory, metadata, engine))

    def _reference(self, name: str) -> Runnable:
        if name not in self._references:
            if name in HALVES and self._checkpoint is not None:
                if self._unet is None:
                    self._unet = self._checkpoint.load_unet(self._device, torch.float32)
                self._references[name] = TorchReference(self._unet, name)
            else:
                self._references[name] = OnnxReference(self._onnx / f"{name}.onnx")
        return self._references[name]

    def _patchers(self, checkpoint: Checkpoint) -> list[Patcher | EnginePatcher]:
        """Of the reference, and of the halves of each directory."""
        assert self._unet is not None  # the halves' references
        patchers: list[Patcher | EnginePatcher] = [Patcher({UNET: self._unet})]
        for directory in dict.fromkeys(directory for directory, _, _ in self._halves):
            own = [(metadata, engine) for other, metadata, engine in self._halves if other == directory]
            dtype = getattr(torch, own[0][0].precision)
            engines = [(UNET, EngineRefitter(engine), read_weight_map(directory, meta.name)) for meta, engine in own]
            patchers.append(EnginePatcher({UNET: checkpoint.load_unet(self._device, dtype)}, engines, dtype))
        return patchers
