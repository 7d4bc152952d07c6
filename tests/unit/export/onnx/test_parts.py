"""Graphs of single parts: precisions, the VAE, names at real widths, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from typer.testing import CliRunner

import checkpoints
from onnx_graphs import (
    CPU,
    INPUTS,
    assert_close,
    fused_nodes,
    halfway,
    run,
    session,
    unet_inputs,
)
from swiftdiffusion.clients.cli import app
from swiftdiffusion.export.onnx.checkpoint_export import OnnxOptions, export_onnx
from swiftdiffusion.export.onnx.checkpoint_parts import keep_dtype, unet_parts, vae_part
from swiftdiffusion.export.onnx.errors import OnnxExportError, UnexportableError
from swiftdiffusion.export.onnx.graph_modules import VaeDecoderGraph, WithoutAbsentInputs
from swiftdiffusion.export.onnx.graph_part import GraphPart, Sizes
from swiftdiffusion.export.onnx.torch_graph import torch_graph
from swiftdiffusion.python_backends.lora.files.modules import adaptable_weights
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.fused_modules import fuse
from swiftdiffusion.python_backends.networks.latent_decoding import decode_latents
from swiftdiffusion.python_backends.networks.unet_halves import EncoderHalf

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tiny(tmp_path: Path) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path / "checkpoint"))


@pytest.fixture
def smaller(tmp_path: Path) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path / "checkpoint", depth=2))


@torch.no_grad()
def test_half_precision(smaller: Checkpoint, tmp_path: Path) -> None:
    """SDXL's encoder half, whose embeddings mix types."""
    graph = torch_graph(next(unet_parts(smaller, torch.float16, Sizes(2, 8, 12, 2, dynamic=False))))
    ir.save(graph, tmp_path / "half.onnx")
    onnx.checker.check_model(str(tmp_path / "half.onnx"), full_check=True)
    unet, computed = smaller.load_unet(CPU, torch.float16), session(tmp_path / "half.onnx")
    inputs = unet_inputs(smaller, (2, 8, 12), torch.float16)
    assert {name for name, tensor in inputs.items() if tensor.dtype == torch.float32} == {"timesteps", "time_ids"}
    assert_close(run(computed, inputs), halfway(unet, inputs), tolerance=4e-3)
    weights = [value.dtype for value in graph.graph.inputs[len(inputs) :]]
    assert set(weights) == {ir.DataType.FLOAT16}


def test_a_vae_that_overflows_stays_in_float32(tiny: Checkpoint) -> None:
    sizes = Sizes(2, 16, 16, 4, dynamic=True)
    assert tiny.vae_config["force_upcast"]
    assert vae_part(tiny, torch.float16, sizes).inputs["latents"].dtype == torch.float32
    config = json.loads((tiny.path / "vae/config.json").read_text())
    (tiny.path / "vae/config.json").write_text(json.dumps(config | {"force_upcast": False}))
    assert vae_part(Checkpoint(tiny.path), torch.float16, sizes).inputs["latents"].dtype == torch.float16


@torch.no_grad()
def test_latents_with_a_mean(smaller: Checkpoint, tmp_path: Path) -> None:
    """And a graph that is traced with many rows takes few."""
    config = json.loads((smaller.path / "vae/config.json").read_text())
    mean, std = [0.5, -1.0, 0.0, 2.0], [1.5, 0.5, 1.0, 2.0]
    (smaller.path / "vae/config.json").write_text(json.dumps(config | {"latents_mean": mean, "latents_std": std}))
    checkpoint = Checkpoint(smaller.path)
    vae = checkpoint.load_vae(CPU, torch.float32)
    graph = torch_graph(vae_part(checkpoint, torch.float32, Sizes(64, 4, 4, 2, dynamic=True)))
    ir.save(graph, tmp_path / "vae.onnx")
    for shape in ((64, 4, 4, 4), (1, 4, 16, 16)):
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        image = VaeDecoderGraph(vae)(latents)
        pixels = (image * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
        assert torch.equal(pixels, decode_latents(vae, latents))
        by_hand = [latents[:, c] * std[c] / vae.config.scaling_factor + mean[c] for c in range(4)]
        expected = vae.decode(torch.stack(by_hand, 1)).sample
        assert_close(run(session(tmp_path / "vae.onnx"), {"latents": latents}), {"image": expected})


@torch.no_grad()
def test_a_unet_without_a_mid_block_and_a_tiny_autoencoder(tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoints.with_tiny_vae(checkpoints.sd15(tmp_path / "checkpoint", mid_block_type=None)))
    sizes = Sizes(2, 8, 8, 2, dynamic=False)
    for part in (*unet_parts(checkpoint, torch.float32, sizes), vae_part(checkpoint, torch.float32, sizes)):
        file = tmp_path / f"{part.name}.onnx"
        ir.save(torch_graph(part), file)
        generator = torch.Generator().manual_seed(0)
        given = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in part.inputs.items()}
        expected = part.module(*given.values())
        outputs = expected if isinstance(expected, tuple) else (expected,)
        assert_close(run(session(file), given), dict(zip(part.outputs, outputs, strict=True)))


def test_the_names_at_the_real_widths() -> None:
    """SDXL's encoder half as published but for its depth: one layer for each of its up to ten."""
    config = {
        "layers_per_block": 1,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": 1,
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    with init_empty_weights():
        unet = UNet2DConditionModel(**config)
    unet = unet.half().to_empty(device="cpu").requires_grad_(False).eval()  # memory that nothing reads or writes
    nodes = fused_nodes(unet, "down_blocks", "mid_block")
    fuse(unet)
    keep_dtype(unet, torch.float16)
    shapes = {
        "latents": (2, 4, 128, 128),
        "timesteps": (2,),
        "encoder_hidden_states": (2, 77, 2048),
        "text_embeds": (2, 1280),
        "time_ids": (2, 6),
    }
    inputs = {
        name: torch.zeros(shape, dtype=torch.float32 if name.startswith("time") else torch.float16)
        for name, shape in shapes.items()
    }
    module = WithoutAbsentInputs(EncoderHalf(unet), INPUTS, list(inputs))
    outputs = ["mid", "embedding", *(f"skip_{index}" for index in range(6))]
    sizes = Sizes(2, 128, 128, 4, dynamic=False)
    graph = torch_graph(GraphPart("unet_encoder", "unet", module, unet, inputs, outputs, sizes, ""))
    expected = {name for name in adaptable_weights(unet) if not name.startswith(("up_blocks", "conv_out"))}
    assert {value.name.removesuffix(".weight") for value in graph.graph.inputs[len(inputs) :]} == expected
    assert Counter(node.op_type for node in graph.graph if node.domain) == nodes


def test_what_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    union = checkpoints.controlnet_union(tiny.path, tmp_path / "union", 0)
    with pytest.raises(UnexportableError, match=r"ControlNet all .* is a union"):
        export_onnx(tiny, tmp_path / "onnx", OnnxOptions(controlnets={"all": union}))
    assert not list((tmp_path / "onnx").iterdir())
    for options, said in (
        (OnnxOptions(dtype="int8"), "--dtype is int8; allowed: float32, float16"),
        (OnnxOptions(height=50), "--height is 50; allowed: multiples of 16"),
        (OnnxOptions(width=16), "--width is 16; wanted without --fixed: at least 32"),
        (OnnxOptions(norms="group"), "--norms is group; allowed: reduce, instance"),
        (OnnxOptions(rows=1), "--rows is 1; wanted: at least 2 without --fixed"),
    ):
        with pytest.raises(OnnxExportError, match=said):
            export_onnx(tiny, tmp_path / "onnx", options)
    with pytest.raises(OnnxExportError, match="is not empty; wanted: a new or empty directory"):
        export_onnx(tiny, union, OnnxOptions())


def test_the_command_says_what_is_wrong(tiny: Checkpoint, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        result = CliRunner().invoke(
            app, ["export-onnx", "--checkpoint", str(tiny.path), "--output", str(tmp_path / "onnx"), *arguments]
        )
        assert result.exit_code == 2
        return result.stderr

    assert "--dtype is float64; allowed: float32, float16" in said("--dtype", "float64")
    assert "wanted: NAME=PATH" in said("--controlnet", "edges")
    assert "holds no weights" in said("--controlnet", f"edges={tmp_path}")
