"""ONNX graphs of tiny checkpoints in ONNX Runtime, beside the networks that they were made of."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D

from swiftdiffusion.python_backends.lora.files.modules import adaptable_weights
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.unet import arguments, example
from swiftdiffusion.python_backends.networks.unet_halves import EncoderHalf
from swiftdiffusion.python_backends.tensorrt.weights import EngineWeights, read_weight_map

CPU = torch.device("cpu")
INPUTS = ("latents", "timesteps", "encoder_hidden_states", "text_embeds", "time_ids", "timestep_cond")
Outputs = dict[str, torch.Tensor]
MANY_ROWS = (66, 4, 4)
"""From 64 rows on, diffusers' upsampling takes a branch that graphs are not traced with."""


@dataclass
class Exported:
    """A checkpoint, its ControlNet and its graphs.

    Attributes:
        other: Batch and latents' size that the graphs take besides the exported one, or None.
    """

    checkpoint: Checkpoint
    controlnet: Path
    directory: Path
    size: tuple[int, int, int]
    other: tuple[int, int, int] | None

    @property
    def sizes(self) -> list[tuple[int, int, int]]:
        return [self.size] if self.other is None else [self.size, self.other, MANY_ROWS]

    def session(self, name: str, changed: Mapping[str, torch.Tensor] | None = None) -> onnxruntime.InferenceSession:
        """A graph in ONNX Runtime, with some initializers changed in a copy of it."""
        file = self.directory / f"{name}.onnx"
        if changed is None:
            return session(file)
        model = ir.load(file)
        for key, tensor in changed.items():
            model.graph.initializers[key].const_value = ir.tensor(tensor.numpy(), name=key)
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory) / file.name
            ir.save(model, copy, external_data=f"{file.name}.data")
            return session(copy)

    def initializers(self, name: str) -> dict[str, torch.Tensor]:
        values = ir.load(self.directory / f"{name}.onnx").graph.initializers.values()
        return {value.name: torch.from_numpy(value.const_value.numpy().copy()) for value in values}

    def weights_of(self, network: torch.nn.Module, name: str) -> dict[str, torch.Tensor]:
        """A graph's initializers that LoRAs adapt, as a network has them."""
        places = read_weight_map(self.directory, name)
        return EngineWeights(places, adaptable_weights(network), torch.float32).update(places)


def session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def unet_inputs(
    checkpoint: Checkpoint, size: tuple[int, int, int], dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """What the UNet takes, by its names in the graphs."""
    rows, height, width = size
    generator = torch.Generator().manual_seed(rows)
    tensors = example(checkpoint, rows)
    tensors["LATENTS"] = torch.zeros(rows, checkpoint.latent_channels, height, width)
    tensors = {name: torch.randn(zeros.shape, generator=generator) for name, zeros in tensors.items()}
    tensors["TIMESTEPS"] = torch.linspace(3, 950, rows)[:, None]
    if "TIME_IDS" in tensors:
        tensors["TIME_IDS"] = torch.randint(0, 1024, (rows, 6), generator=generator).float()
    given = zip(INPUTS, arguments(tensors, CPU, dtype), strict=True)
    return {name: tensor for name, tensor in given if tensor.numel()}


def absent_as_empty(inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    return [inputs.get(name, torch.empty(0)) for name in INPUTS]


def run(session: onnxruntime.InferenceSession, inputs: Mapping[str, torch.Tensor]) -> Outputs:
    outputs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return {
        node.name: torch.from_numpy(np.asarray(each)) for node, each in zip(session.get_outputs(), outputs, strict=True)
    }


def assert_close(outputs: Outputs, expected: Mapping[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert list(outputs) == list(expected)
    for name, tensor in expected.items():
        assert outputs[name].dtype == tensor.dtype, name
        bound = tolerance * max(1.0, tensor.float().abs().max().item())
        torch.testing.assert_close(outputs[name].float(), tensor.float(), rtol=0, atol=bound, msg=name)


@torch.no_grad()
def halfway(unet: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Outputs:
    mid, embedding, *skips = EncoderHalf(unet)(*absent_as_empty(inputs))
    return {"mid": mid, "embedding": embedding} | {f"skip_{index}": skip for index, skip in enumerate(skips)}


def fused_nodes(unet: torch.nn.Module, *parts: str) -> dict[str, int]:
    """How many nodes some parts of an unfused UNet come to."""
    modules = [
        module
        for name, module in unet.named_modules()
        if any(name == part or name.startswith(f"{part}.") for part in parts)
    ]
    blocks = sum(isinstance(module, ResnetBlock2D) for module in modules)
    norms = sum(isinstance(module, torch.nn.GroupNorm) for module in modules)
    gates = sum(isinstance(module, GEGLU) for module in modules)
    counts = {"AddGroupNormSiLU": blocks, "GroupNormSiLU": norms - blocks, "GEGLU": gates}
    return {name: count for name, count in counts.items() if count}
