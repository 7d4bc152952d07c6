"""Graphs of tiny checkpoints: they compute what the networks do, and the weights that LoRAs adapt are inputs."""

from __future__ import annotations

import json
from importlib.metadata import version

import onnx_ir as ir
import pytest
import torch
from typer.testing import CliRunner

import checkpoints
import lora_files
from onnx_graphs import (
    CPU,
    Exported,
    absent_as_empty,
    assert_close,
    fused_nodes,
    halfway,
    run,
    unet_inputs,
)
from swiftdiffusion.clients.cli import app
from swiftdiffusion.export.onnx.checkpoint_export import OnnxOptions, export_onnx
from swiftdiffusion.python_backends.controlnets.weights import load_controlnet
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules, adaptable_weights
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.controlnet_modules import PositionalControlNet
from swiftdiffusion.python_backends.networks.digests import weights_digest
from swiftdiffusion.python_backends.networks.unet_halves import DecoderHalf

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """SDXL for any size, SD 1.5 for one and by the command."""
    directory = tmp_path_factory.mktemp(request.param)
    path = getattr(checkpoints, request.param)(directory / "checkpoint", depth=2)
    dynamic = request.param == "sdxl"
    controlnet = checkpoints.controlnet(path, directory / "controlnet", 1)
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
    assert {file.name for file in (directory / "onnx").iterdir()} == written | {"export.json"}
    return Exported(checkpoint, controlnet, directory / "onnx", (2, 8, 12), (3, 16, 6) if dynamic else None)


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


def test_every_adaptable_weight_is_an_input_once(exported: Exported) -> None:
    parts = {"unet": exported.checkpoint.load_unet(CPU, torch.float32)}
    pipeline = exported.checkpoint.load_text_pipeline(CPU, torch.float32)
    names = {"unet": ["unet_encoder", "unet_decoder"], "text_encoder": ["text_encoder"]}
    parts["text_encoder"] = pipeline.text_encoder
    if exported.checkpoint.family == "sdxl":
        parts["text_encoder_2"], names["text_encoder_2"] = pipeline.text_encoder_2, ["text_encoder_2"]
    described = json.loads((exported.directory / "export.json").read_text())["graphs"]
    for component, graphs in names.items():
        weights = {f"{name}.weight": weight for name, weight in adaptable_weights(parts[component]).items()}
        taken: list[str] = []
        for graph in graphs:
            defaults, values = exported.initializers(graph), exported.session(graph).get_overridable_initializers()
            for value in values:
                assert torch.equal(defaults[value.name], weights[value.name]), value.name
            own = [(value.name, list(weights[value.name].shape)) for value in values]
            assert sorted((each["name"], each["shape"]) for each in described[graph]["weights"]) == sorted(own)
            taken += [name for name, _ in own]
        skipped = {name for name in weights if name.startswith("encoder.layers.1.")}  # SDXL takes the layer before
        unused = skipped if component == "text_encoder" and "text_encoder_2" in parts else set()
        assert sorted(taken) == sorted(weights.keys() - unused)
    for graph in ("controlnet_edges", "vae_decoder"):
        assert not exported.session(graph).get_overridable_initializers()
        assert not described[graph]["weights"]


def test_other_parameters_keep_their_names(exported: Exported) -> None:
    unet = exported.checkpoint.load_unet(CPU, torch.float32)
    found = exported.initializers("unet_encoder").keys() | exported.initializers("unet_decoder").keys()
    assert unet.state_dict().keys() <= found


def test_a_graph_says_what_it_was_made_of(exported: Exported) -> None:
    said = ir.load(exported.directory / "unet_encoder.onnx").metadata_props
    assert (said["swiftdiffusion.norms"], said["swiftdiffusion.precision"]) == ("reduce", "float32")
    assert said["swiftdiffusion.weights_digest"] == weights_digest(exported.checkpoint.load_unet(CPU, torch.float32))
    assert said["swiftdiffusion.weights_digest"] != weights_digest(exported.checkpoint.load_unet(CPU, torch.float16))


@pytest.fixture(scope="module")
def lora(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> CanonicalLora:
    """Over every linear layer and convolution of all networks, ranks 1 to 3."""
    made = lora_files.kohya(BaseModules.of(exported.checkpoint).shapes, lambda number: number % 3 + 1)
    file = made.save(tmp_path_factory.mktemp("lora") / "lora.safetensors")
    return Canonicaliser(exported.checkpoint).read(file)


@torch.no_grad()
def test_a_lora_on_the_text_encoder(exported: Exported, lora: CanonicalLora) -> None:
    pipeline = exported.checkpoint.load_text_pipeline(CPU, torch.float32)
    name = "text_encoder_2" if exported.checkpoint.family == "sdxl" else "text_encoder"
    encoder = getattr(pipeline, name)
    Patcher({name: encoder}).apply([(lora, 1.0)])
    ids = torch.arange(2 * 77).reshape(2, 77) % 50
    expected = encoder(ids, output_hidden_states=True)
    hidden = expected.hidden_states[-2] if name == "text_encoder_2" else expected.last_hidden_state
    outputs = run(exported.session(name), {"input_ids": ids}, encoder)
    assert_close({"hidden_states": outputs["hidden_states"]}, {"hidden_states": hidden})


def test_the_description(exported: Exported) -> None:
    said = json.loads((exported.directory / "export.json").read_text())
    assert said["family"] == exported.checkpoint.family
    assert said["dynamic"] == (exported.other is not None)
    assert (said["rows"], said["height"], said["width"]) == (2, 16, 24)
    assert said["versions"]["torch"] == version("torch")  # CUDA builds' own __version__ says more
    assert {"unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"} < said[
        "sha256"
    ].keys()
    latents = said["graphs"]["unet_encoder"]["inputs"][0]
    shape = ["rows", 4, "height", "width"] if exported.other else [2, 4, 8, 12]
    assert latents == {"name": "latents", "dtype": "float32", "shape": shape}
    image = said["graphs"]["vae_decoder"]["outputs"][0]
    assert image["shape"] == (["rows", 3, "2*height", "2*width"] if exported.other else [2, 3, 16, 24])
