"""ONNX graphs in the place of the engines that are built from them, which run on no CPU.

What they read and give, and what of a network's weights they follow, is the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import onnxruntime
import torch

from onnx_graphs import session
from swiftdiffusion.python_backends.tensorrt.shapes import EngineShapeError

TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(int64)": torch.int64}
MOST_ROWS = 8


class OnnxEngine:
    """As `tensorrt.engine.Engine`, of an ONNX file of the same name; outputs are overwritten by the next call."""

    def __init__(
        self,
        directory: Path,
        name: str,
        device: torch.device,
        flavour: object,
        weights: Mapping[str, torch.Tensor] | None = None,
        digest: str | None = None,
    ) -> None:
        self._session: onnxruntime.InferenceSession = session(directory / f"{name}.onnx")
        taken = {each.name: TYPES[each.type] for each in self._session.get_overridable_initializers()}
        self._weights = {each: (weights or {})[each] for each in taken}
        assert {each: tensor.dtype for each, tensor in self._weights.items()} == taken
        self._addresses = {each: tensor.data_ptr() for each, tensor in self._weights.items()}
        self.inputs = {each.name: TYPES[each.type] for each in self._session.get_inputs()}
        self.outputs = {each.name: TYPES[each.type] for each in self._session.get_outputs()}
        self.constants: frozenset[str] = frozenset()
        self.digest, self.calls = digest, 0
        self._kept: dict[tuple[torch.Size, ...], dict[str, torch.Tensor]] = {}

    @classmethod
    def load(cls, *arguments: object, **named: object) -> OnnxEngine:
        return cls(*arguments, **named)  # type: ignore[arg-type]

    def takes(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return all(shape[0] <= MOST_ROWS for shape in shapes.values())

    def run(self, inputs: Mapping[str, torch.Tensor], adopted: Collection[str] = ()) -> dict[str, torch.Tensor]:
        assert set(inputs) == set(self.inputs)
        assert self._addresses == {name: tensor.data_ptr() for name, tensor in self._weights.items()}
        if not self.takes({name: tuple(tensor.shape) for name, tensor in inputs.items()}):
            raise EngineShapeError(f"more than {MOST_ROWS} rows")
        given = {name: tensor.to(self.inputs[name]) for name, tensor in inputs.items()}
        found = self._session.run(
            list(self.outputs),
            {name: tensor.detach().contiguous().numpy() for name, tensor in (given | self._weights).items()},
        )
        self.calls += 1
        made = dict(zip(self.outputs, map(torch.from_numpy, found), strict=True))
        key = tuple(tensor.shape for tensor in inputs.values())
        kept = self._kept.setdefault(key, made)
        for name, tensor in made.items():
            kept[name].copy_(tensor)
        return dict(kept)
