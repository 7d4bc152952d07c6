"""Graphs that are fed a patched network's weights compute what it does: one patcher for modules and engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

import checkpoints
import lora_files
from onnx_graphs import CPU, assert_close, halfway, run, session, unet_inputs, weights_for
from swiftdiffusion.export.onnx.checkpoint_parts import unet_parts
from swiftdiffusion.export.onnx.function_bodies import INSTANCE, NORM_FORMS, REDUCE
from swiftdiffusion.export.onnx.graph_part import GraphPart, Sizes
from swiftdiffusion.export.onnx.torch_graph import torch_graph
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.unet_halves import DecoderHalf

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (2, 8, 12)
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3}


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(getattr(checkpoints, request.param)(tmp_path_factory.mktemp("models") / "checkpoint", depth=2))


def lora(checkpoint: Checkpoint, directory: Path, seed: int) -> CanonicalLora:
    """Over every linear layer and convolution, of ranks 1 to 3."""
    shapes = BaseModules.of(checkpoint).shapes
    made = lora_files.kohya(shapes, lambda number: (number + seed) % 3 + 1, seed=seed)
    return Canonicaliser(checkpoint).read(made.save(directory / f"{seed}.safetensors"))


@dataclass(frozen=True)
class Halves:
    """Graphs of a UNet: its encoder half by the form of its norms, and its decoder half."""

    dtype: torch.dtype
    encoders: dict[str, Path]
    decoder: Path


@pytest.fixture(scope="module", params=TOLERANCES, ids=str)
def halves(request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Halves:
    directory = tmp_path_factory.mktemp("halves")
    encoder, decoder = unet_parts(checkpoint, request.param, Sizes(*SIZE, 2, dynamic=False))

    def write(part: GraphPart, norms: str) -> Path:
        ir.save(torch_graph(part, norms), file := directory / f"{part.name}-{norms}.onnx")
        return file

    return Halves(request.param, {norms: write(encoder, norms) for norms in NORM_FORMS}, write(decoder, REDUCE))


@torch.no_grad()
def test_there_and_back(checkpoint: Checkpoint, halves: Halves, tmp_path: Path) -> None:
    """Sets A, B, both, A again and none, patched in where the weights lie, as on a GPU."""
    dtype, encoder, decoder = halves.dtype, session(halves.encoders[REDUCE]), session(halves.decoder)
    unet = checkpoint.load_unet(CPU, dtype)
    patcher = Patcher({"unet": unet}, in_place=True)
    inputs, tolerance = unet_inputs(checkpoint, SIZE, dtype), TOLERANCES[dtype]
    context = {"encoder_hidden_states": inputs["encoder_hidden_states"]}
    a, b = (lora(checkpoint, tmp_path, seed) for seed in (1, 2))
    addresses = {name: tensor.data_ptr() for name, tensor in weights_for(encoder, unet).items()}
    seen: dict[str, torch.Tensor] = {}
    for name, loras in {"none": [], "a": [(a, 0.7)], "b": [(b, 1.0)], "both": [(a, 0.7), (b, 1.0)]}.items():
        patcher.apply(loras)
        between = halfway(unet, inputs)
        assert_close(run(encoder, inputs, unet), between, tolerance)
        expected = DecoderHalf(unet)(*context.values(), *between.values())
        found = run(decoder, context | between, unet)
        assert_close(found, {"noise_prediction": expected}, tolerance)
        seen[name] = found["noise_prediction"]
    for one, other in (("none", "a"), ("a", "b"), ("b", "both")):
        assert (seen[one] - seen[other]).abs().max() > 0.01
    for name, loras in {"a": [(a, 0.7)], "none": []}.items():
        patcher.apply(loras)
        between = halfway(unet, inputs)
        assert torch.equal(run(decoder, context | between, unet)["noise_prediction"], seen[name]), "not a bit differs"
    fresh = checkpoint.load_unet(CPU, dtype).state_dict()
    assert all(torch.equal(fresh[name], tensor) for name, tensor in weights_for(encoder, unet).items())
    assert addresses == {name: tensor.data_ptr() for name, tensor in weights_for(encoder, unet).items()}


def test_both_forms_of_norms_are_equal(checkpoint: Checkpoint, halves: Halves) -> None:
    found = []
    for norms, encoder in halves.encoders.items():
        operators = {node.op_type for function in ir.load(encoder).functions.values() for node in function}
        assert ("InstanceNormalization" in operators) == (norms == INSTANCE)
        assert ("ReduceMean" in operators) == (norms == REDUCE)
        assert "Where" not in operators
        found.append(run(session(encoder), unet_inputs(checkpoint, SIZE, halves.dtype)))
    assert_close(*found, TOLERANCES[halves.dtype])
