"""Graphs of tiny checkpoints: they compute what the networks do, and their weights are where the maps say."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from typer.testing import CliRunner

import checkpoints
import lora_files
from swiftdiffusion.clients.cli import app
from swiftdiffusion.export.onnx.checkpoint_export import OnnxExportError, OnnxOptions, export_onnx
from swiftdiffusion.export.onnx.checkpoint_parts import UnexportableError, keep_dtype, unet_parts, vae_part
from swiftdiffusion.export.onnx.graph_modules import VaeDecoderGraph, WithoutAbsentInputs
from swiftdiffusion.export.onnx.graph_part import GraphPart, Sizes
from swiftdiffusion.export.onnx.torch_graph import torch_graph
from swiftdiffusion.python_backends.checkpoint import Checkpoint
from swiftdiffusion.python_backends.controlnet_modules import PositionalControlNet
from swiftdiffusion.python_backends.controlnet_weights import load_controlnet
from swiftdiffusion.python_backends.fused_modules import fuse
from swiftdiffusion.python_backends.latent_decoding import decode_latents
from swiftdiffusion.python_backends.lora.canonical import Canonicaliser, CanonicalLora
from swiftdiffusion.python_backends.lora.modules import BaseModules, adaptable_weights
from swiftdiffusion.python_backends.lora.patcher import Patcher
from swiftdiffusion.python_backends.tensorrt.weights import EngineWeights, read_weight_map
from swiftdiffusion.python_backends.unet import arguments, example
from swiftdiffusion.python_backends.unet_halves import DecoderHalf, EncoderHalf

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
INPUTS = ("latents", "timesteps", "encoder_hidden_states", "text_embeds", "time_ids", "timestep_cond")
Outputs = dict[str, torch.Tensor]


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
        return [self.size] if self.other is None else [self.size, self.other]

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


def make_smaller(checkpoint: Path) -> None:
    """Leaves two levels of a checkpoint's UNet and VAE: exported in half the time, with parts of the same kinds."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.load_config(checkpoint, subfolder="unet")
    for key in ("block_out_channels", "down_block_types", "transformer_layers_per_block"):
        unet[key] = unet[key][:2] if isinstance(unet[key], list) else unet[key]
    unet["up_block_types"] = unet["up_block_types"][-2:]
    heads = unet["attention_head_dim"]
    unet["attention_head_dim"] = heads[:2] if isinstance(heads, list) else heads
    UNet2DConditionModel.from_config(unet).save_pretrained(checkpoint / "unet", safe_serialization=True)
    vae = AutoencoderKL.load_config(checkpoint, subfolder="vae")
    for key in ("block_out_channels", "down_block_types", "up_block_types"):
        vae[key] = vae[key][-2:]
    AutoencoderKL.from_config(vae).save_pretrained(checkpoint / "vae", safe_serialization=True)


def small_controlnet(checkpoint: Path, directory: Path) -> Path:
    """A ControlNet that makes of two pixels one latent cell, as the smaller VAE does."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.6)  # else it would change nothing
    network.save_pretrained(directory, safe_serialization=True)
    return directory


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """SDXL for any size, SD 1.5 for one and by the command."""
    directory = tmp_path_factory.mktemp(request.param)
    path = getattr(checkpoints, request.param)(directory / "checkpoint")
    dynamic = request.param == "sdxl"
    make_smaller(path)
    controlnet = small_controlnet(path, directory / "controlnet")
    checkpoint = Checkpoint(path)
    if dynamic:
        options = OnnxOptions("float32", {"edges": controlnet}, height=16, width=24)
        names = export_onnx(checkpoint, directory / "onnx", options)
    else:
        options = ["--dtype", "float32", "--controlnet", f"edges={controlnet}", "--height", "16", "--width", "24"]
        where = ["--checkpoint", str(path), "--output", str(directory / "onnx")]
        result = CliRunner().invoke(app, ["export-onnx", *where, *options, "--fixed"])
        assert result.exit_code == 0, result.output
        line, _ = result.stdout.splitlines()
        names = line.removeprefix(f"{directory / 'onnx'}: ").split(", ")
    encoders = ["text_encoder", "text_encoder_2"] if dynamic else ["text_encoder"]
    assert names == [
        "unet_encoder",
        "unet_decoder",
        "controlnet_edges",
        "controlnet_edges_embedder",
        *encoders,
        "vae_decoder",
    ]
    written = {f"{name}{suffix}" for name in names for suffix in (".onnx", ".onnx.data")}
    written |= {f"{name}.weights.json" for name in ("unet_encoder", "unet_decoder", *encoders)}
    assert {file.name for file in (directory / "onnx").iterdir()} == written | {"export.json"}
    return Exported(checkpoint, controlnet, directory / "onnx", (2, 8, 12), (3, 16, 6) if dynamic else None)


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


@torch.no_grad()
def test_the_halves_of_the_unet(exported: Exported) -> None:
    unet = exported.checkpoint.load_unet(CPU, torch.float32)
    encoder, decoder = exported.session("unet_encoder"), exported.session("unet_decoder")
    for size in exported.sizes:
        inputs = unet_inputs(exported.checkpoint, size)
        between = halfway(unet, inputs)
        assert_close(run(encoder, inputs), between)
        context = inputs["encoder_hidden_states"]
        expected = DecoderHalf(unet)(context, *between.values())
        taken = {"encoder_hidden_states": context} | between
        assert_close(run(decoder, taken), {"noise_prediction": expected})


@torch.no_grad()
def test_a_controlnet(exported: Exported) -> None:
    network = PositionalControlNet(load_controlnet(exported.controlnet, exported.checkpoint, torch.float32))
    embedder, controlnet = exported.session("controlnet_edges_embedder"), exported.session("controlnet_edges")
    for size in exported.sizes:
        rows, height, width = size
        factor = exported.checkpoint.vae_scale_factor
        pixels = torch.rand(rows, 3, height * factor, width * factor, generator=torch.Generator().manual_seed(rows))
        embedded = run(embedder, {"pixels": pixels})
        assert_close(embedded, {"control_embedding": network.embed(pixels)})
        inputs = unet_inputs(exported.checkpoint, size)
        *residuals, mid = network(*absent_as_empty(inputs)[:5], embedded["control_embedding"])
        expected = {f"residual_{index}": residual for index, residual in enumerate(residuals)} | {"residual_mid": mid}
        assert_close(run(controlnet, inputs | embedded), expected)


@torch.no_grad()
def test_text_encoders(exported: Exported) -> None:
    pipeline = exported.checkpoint.load_text_pipeline(CPU, torch.float32)
    texts = ["a red circle above a blue square", "a photo", ""]
    for rows in {size[0] for size in exported.sizes}:
        encoded = pipeline.encode_prompt(
            prompt=texts[:rows], device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        ids = pipeline.tokenizer(texts[:rows], padding="max_length", truncation=True, return_tensors="pt").input_ids
        outputs = run(exported.session("text_encoder"), {"input_ids": ids})
        tokens = outputs["hidden_states"]
        if exported.checkpoint.family == "sdxl":
            second = run(exported.session("text_encoder_2"), {"input_ids": ids})
            assert_close({"pooled": second["pooled"]}, {"pooled": encoded[2]})
            tokens = torch.cat([tokens, second["hidden_states"]], dim=-1)
        assert_close({"tokens": tokens}, {"tokens": encoded[0]})


@torch.no_grad()
def test_the_vae(exported: Exported) -> None:
    vae = exported.checkpoint.load_vae(CPU, torch.float32)
    session = exported.session("vae_decoder")
    for size in exported.sizes:
        latents = unet_inputs(exported.checkpoint, size)["latents"]
        expected = vae.decode(latents / vae.config.scaling_factor).sample
        assert_close(run(session, {"latents": latents}), {"image": expected})


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


def test_fused_operators_are_single_nodes(exported: Exported) -> None:
    unet = exported.checkpoint.load_unet(CPU, torch.float32)
    described = json.loads((exported.directory / "export.json").read_text())["graphs"]
    assert described["unet_encoder"]["fused_nodes"] == fused_nodes(unet, "down_blocks", "mid_block")
    assert described["unet_decoder"]["fused_nodes"] == fused_nodes(unet, "up_blocks", "conv_norm_out")
    assert described["controlnet_edges"]["fused_nodes"] == fused_nodes(unet, "down_blocks", "mid_block")
    for name in ("unet_encoder", "controlnet_edges", "vae_decoder"):
        model = ir.load(exported.directory / f"{name}.onnx")
        nodes = [node for node in model.graph if node.domain]
        assert {function[1] for function in model.functions} == {node.op_type for node in nodes}
        for node in nodes:
            attributes = {key: attribute.value for key, attribute in node.attributes.items()}
            assert attributes["plugin_namespace"] == "swiftdiffusion"
            assert (attributes["plugin_version"], attributes["aot"]) == ("1", 1)
    groups = {node.attributes["groups"].as_int() for node in nodes}
    assert groups == {exported.checkpoint.vae_config["norm_num_groups"]}


def test_every_adaptable_weight_is_mapped_once(exported: Exported) -> None:
    parts = {"unet": exported.checkpoint.load_unet(CPU, torch.float32)}
    pipeline = exported.checkpoint.load_text_pipeline(CPU, torch.float32)
    names = {"unet": ["unet_encoder", "unet_decoder"], "text_encoder": ["text_encoder"]}
    parts["text_encoder"] = pipeline.text_encoder
    if exported.checkpoint.family == "sdxl":
        parts["text_encoder_2"], names["text_encoder_2"] = pipeline.text_encoder_2, ["text_encoder_2"]
    for component, graphs in names.items():
        weights = adaptable_weights(parts[component])
        mapped: list[str] = []
        for graph in graphs:
            initializers, places = exported.initializers(graph), read_weight_map(exported.directory, graph)
            for module, place in places.items():
                assert torch.equal(place.as_module(initializers[place.initializer]), weights[module]), module
            mapped += places
        skipped = {name for name in weights if name.startswith("encoder.layers.2.")}  # SDXL takes the layer before
        unused = skipped if component == "text_encoder" and "text_encoder_2" in parts else set()
        assert sorted(mapped) == sorted(weights.keys() - unused)


def test_other_parameters_keep_their_names(exported: Exported) -> None:
    unet = exported.checkpoint.load_unet(CPU, torch.float32)
    found = exported.initializers("unet_encoder").keys() | exported.initializers("unet_decoder").keys()
    for name in unet.state_dict():
        assert name in found or f"{name}.T" in found, name


@pytest.fixture(scope="module")
def lora(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> CanonicalLora:
    """Over every linear layer and convolution of all networks, ranks 1 to 3."""
    made = lora_files.kohya(BaseModules.of(exported.checkpoint).shapes, lambda number: number % 3 + 1)
    file = made.save(tmp_path_factory.mktemp("lora") / "lora.safetensors")
    return Canonicaliser(exported.checkpoint).read(file)


@torch.no_grad()
def test_a_lora_on_the_graphs(exported: Exported, lora: CanonicalLora) -> None:
    unet = exported.checkpoint.load_unet(CPU, torch.float32)
    inputs = unet_inputs(exported.checkpoint, exported.size)
    before = halfway(unet, inputs)
    context = {"encoder_hidden_states": inputs["encoder_hidden_states"]}
    patcher = Patcher({"unet": unet})
    patcher.apply([(lora, 0.7)])
    between = halfway(unet, inputs)
    after = DecoderHalf(unet)(*context.values(), *between.values())
    encoder = exported.session("unet_encoder", exported.weights_of(unet, "unet_encoder"))
    assert_close(run(encoder, inputs), between)
    decoder = exported.session("unet_decoder", exported.weights_of(unet, "unet_decoder"))
    assert_close(run(decoder, context | between), {"noise_prediction": after})
    assert (between["mid"] - before["mid"]).abs().max() > 0.01
    patcher.apply([])
    pristine = exported.initializers("unet_encoder")
    assert all(torch.equal(pristine[key], each) for key, each in exported.weights_of(unet, "unet_encoder").items())


@torch.no_grad()
def test_a_lora_on_the_text_encoder(exported: Exported, lora: CanonicalLora) -> None:
    pipeline = exported.checkpoint.load_text_pipeline(CPU, torch.float32)
    name = "text_encoder_2" if exported.checkpoint.family == "sdxl" else "text_encoder"
    encoder = getattr(pipeline, name)
    Patcher({name: encoder}).apply([(lora, 1.0)])
    ids = torch.arange(2 * 77).reshape(2, 77) % 50
    expected = encoder(ids, output_hidden_states=True)
    hidden = expected.hidden_states[-2] if name == "text_encoder_2" else expected.last_hidden_state
    outputs = run(exported.session(name, exported.weights_of(encoder, name)), {"input_ids": ids})
    assert_close({"hidden_states": outputs["hidden_states"]}, {"hidden_states": hidden})


def test_the_description(exported: Exported) -> None:
    said = json.loads((exported.directory / "export.json").read_text())
    assert said["family"] == exported.checkpoint.family
    assert said["dynamic"] == (exported.other is not None)
    assert (said["rows"], said["height"], said["width"]) == (2, 16, 24)
    assert said["versions"]["torch"] == torch.__version__
    assert {"unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"} < said[
        "sha256"
    ].keys()
    latents = said["graphs"]["unet_encoder"]["inputs"][0]
    shape = ["rows", 4, "height", "width"] if exported.other else [2, 4, 8, 12]
    assert latents == {"name": "latents", "dtype": "float32", "shape": shape}
    image = said["graphs"]["vae_decoder"]["outputs"][0]
    assert image["shape"] == (["rows", 3, "2*height", "2*width"] if exported.other else [2, 3, 16, 24])


@torch.no_grad()
def test_half_precision(tiny: Checkpoint, tmp_path: Path) -> None:
    """SDXL's encoder half, whose embeddings mix types."""
    make_smaller(tiny.path)
    checkpoint = Checkpoint(tiny.path)
    graph = torch_graph(next(unet_parts(checkpoint, torch.float16, Sizes(2, 8, 12, 2, dynamic=False))))
    ir.save(graph.model, tmp_path / "half.onnx")
    onnx.checker.check_model(str(tmp_path / "half.onnx"), full_check=True)
    unet, computed = checkpoint.load_unet(CPU, torch.float16), session(tmp_path / "half.onnx")
    inputs = unet_inputs(checkpoint, (2, 8, 12), torch.float16)
    assert {name for name, tensor in inputs.items() if tensor.dtype == torch.float32} == {"timesteps", "time_ids"}
    assert_close(run(computed, inputs), halfway(unet, inputs), tolerance=4e-3)
    weights = [value.dtype for value in graph.model.graph.initializers.values() if value.name.endswith("weight.T")]
    assert set(weights) == {ir.DataType.FLOAT16}


def test_a_vae_that_overflows_stays_in_float32(tiny: Checkpoint) -> None:
    sizes = Sizes(2, 16, 16, 4, dynamic=True)
    assert tiny.vae_config["force_upcast"]
    assert vae_part(tiny, torch.float16, sizes).inputs["latents"].dtype == torch.float32
    config = json.loads((tiny.path / "vae/config.json").read_text())
    (tiny.path / "vae/config.json").write_text(json.dumps(config | {"force_upcast": False}))
    assert vae_part(Checkpoint(tiny.path), torch.float16, sizes).inputs["latents"].dtype == torch.float16


def test_latents_with_a_mean(tiny: Checkpoint) -> None:
    vae = tiny.load_vae(CPU, torch.float32)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    vae.register_to_config(latents_mean=[0.5, -1.0, 0.0, 2.0], latents_std=[1.5, 0.5, 1.0, 2.0])
    image = VaeDecoderGraph(vae)(latents)
    pixels = (image * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(pixels, decode_latents(vae, latents))


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
    graph = torch_graph(GraphPart("unet_encoder", "unet", module, unet, inputs, outputs, sizes))
    expected = {name for name in adaptable_weights(unet) if not name.startswith(("up_blocks", "conv_out"))}
    assert graph.weights.keys() == expected
    assert Counter(node.op_type for node in graph.model.graph if node.domain) == nodes


@pytest.fixture
def tiny(tmp_path: Path) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path / "checkpoint"))


def test_what_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    union = checkpoints.controlnet_union(tiny.path, tmp_path / "union", 0)
    with pytest.raises(UnexportableError, match=r"ControlNet all .* is a union"):
        export_onnx(tiny, tmp_path / "onnx", OnnxOptions(controlnets={"all": union}))
    assert not list((tmp_path / "onnx").iterdir())
    for options, said in (
        (OnnxOptions(dtype="int8"), "--dtype is int8; allowed: float32, float16"),
        (OnnxOptions(height=50), "--height is 50; allowed: multiples of 16"),
        (OnnxOptions(width=16), "--width is 16; wanted without --fixed: at least 32"),
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
