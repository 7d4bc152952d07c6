"""ONNX graphs of tiny checkpoints in ONNX Runtime, beside the networks that they were made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.unet import arguments, example
from swiftdiffusion.python_backends.networks.unet_halves import EncoderHalf

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

    def session(self, name: str) -> onnxruntime.InferenceSession:
        """A graph in ONNX Runtime."""
        return session(self.directory / f"{name}.onnx")

    def initializers(self, name: str) -> dict[str, torch.Tensor]:
        values = ir.load(self.directory / f"{name}.onnx").graph.initializers.values()
        return {value.name: torch.from_numpy(value.const_value.numpy().copy()) for value in values}


def session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns of every input that has a default
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


def weights_for(session: onnxruntime.InferenceSession, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a graph takes of a network's weights, as they are now."""
    taken = {each.name for each in session.get_overridable_initializers()}
    return {name: tensor for name, tensor in network.state_dict().items() if name in taken}


def run(
    session: onnxruntime.InferenceSession,
    inputs: Mapping[str, torch.Tensor],
    network: torch.nn.Module | None = None,
) -> Outputs:
    """Of a graph, with a network's weights fed or with those of its file."""
    given = {**inputs, **({} if network is None else weights_for(session, network))}
    outputs = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
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
    transformers = sum(isinstance(module, Transformer2DModel) for module in modules)  # their norms are followed by none
    counts = {
        "AddGroupNormSiLU": blocks,
        "GroupNormSiLU": norms - blocks - transformers,
        "GroupNorm": transformers,
        "GEGLU": gates,
    }
    return {name: count for name, count in counts.items() if count}
