"""What engines are compared with: the same ONNX file in ONNX Runtime, or the network itself in PyTorch, in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from ...python_backends.networks.unet_halves import DecoderHalf, EncoderHalf
from ...python_backends.tensorrt.tensor_names import DECODER, ENCODER, ENCODER_INPUTS, halfway_among, halfway_of
from .graph import GraphError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ...python_backends.tensorrt.metadata import Shape

Tensors = dict[str, torch.Tensor]

SCALES = {"timesteps": 1000.0, "time_ids": 1024.0}
"""Inputs whose values are no noise → the largest."""

TOKENS = 100
"""Token numbers are below; every vocabulary has them."""

_TYPES = {
    "tensor(float16)": torch.float16,
    "tensor(float)": torch.float32,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
}
"""ONNX Runtime's → PyTorch's."""


class Runnable(Protocol):
    """An engine, or what stands in for it."""

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """Outputs by name; the next call may overwrite them."""


class OnnxReference:
    """An ONNX file in ONNX Runtime, on the CPU."""

    def __init__(self, path: Path) -> None:
        """Loads the file.

        Raises:
            GraphError: If the package `onnxruntime` is missing.
        """
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise GraphError(f"comparing with {path} needs onnxruntime: pip install onnxruntime") from None

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of every input that has a default
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """Outputs by name, float32."""
        given = {
            each.name: inputs[each.name].cpu().to(_TYPES[each.type]).numpy() for each in self._session.get_inputs()
        }
        names = [each.name for each in self._session.get_outputs()]
        found = self._session.run(names, given)
        return {name: torch.from_numpy(array).float() for name, array in zip(names, found, strict=True)}


class TorchReference:
    """A half of a UNet in PyTorch."""

    def __init__(self, unet: torch.nn.Module, name: str) -> None:
        """Shares the UNet's modules.

        Args:
            unet: diffusers' `UNet2DConditionModel`, float32; patching it takes effect.
            name: `unet_encoder` or `unet_decoder`.
        """
        self._half = {ENCODER: EncoderHalf, DECODER: DecoderHalf}[name](unet)
        self._is_encoder = name == ENCODER
        self._device = next(unet.parameters()).device

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """Outputs by name, float32."""
        given = {name: tensor.to(self._device, torch.float32) for name, tensor in inputs.items()}
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            if self._is_encoder:
                halfway = self._half(*(given.get(name, torch.empty(0)) for name in ENCODER_INPUTS))
                return dict(zip(halfway_of(len(halfway)), halfway, strict=True))
            halfway = [given[name] for name in halfway_among(given)]
            return {"noise_prediction": self._half(given["encoder_hidden_states"], *halfway)}


def random_inputs(shapes: Mapping[str, Shape], seed: int) -> Tensors:
    """Inputs of these shapes, the same for the same seed: noise, and whole numbers where a network wants them."""
    random = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, shape in shapes.items():
        if name == "input_ids":
            tensors[name] = torch.randint(0, TOKENS, shape, generator=random)
        elif name in SCALES:
            tensors[name] = (torch.rand(shape, generator=random) * (SCALES[name] - 1)).floor()
        else:
            tensors[name] = torch.randn(shape, generator=random)
    return tensors
