"""Engines in the place of a pipeline's networks: the same numbers with LoRAs and without, ControlNets, texts, pictures.

The engines are built; ONNX Runtime computes, at the addresses that TensorRT would be given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tensorrt_rtx
import torch
from safetensors.torch import save_file

import addressed_engines
import checkpoints
import lora_files
from swiftdiffusion.export.onnx.checkpoint_export import OnnxOptions, export_onnx
from swiftdiffusion.export.tensorrt.engines import INPUTS, LINEAR, BuildSettings, EngineBuilder
from swiftdiffusion.export.tensorrt.profiles import parse_latents, parse_rows
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.controlnets.network import ControlNet
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.lora.loading.catalogue import Catalogue
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.engine_constants import engine_constants
from swiftdiffusion.python_backends.networks.prompt_encoding import PromptEncoder, Text
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from swiftdiffusion.python_backends.networks.unet import UNet, example
from swiftdiffusion.python_backends.request.completed import ControlNetUse
from swiftdiffusion.python_backends.tensorrt.engine import MAX_SHAPES
from swiftdiffusion.python_backends.tensorrt.flavours import TENSORRT_RTX
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMismatchError
from swiftdiffusion.python_backends.tensorrt.shapes import EngineShapeError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, FLOAT = torch.device("cpu"), torch.float32


ROWS = 8


@dataclass(frozen=True)
class Exported:
    checkpoint: Checkpoint
    controlnet: Path
    runtime: Runtime
    onnx: Path


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    directory = tmp_path_factory.mktemp(request.param)
    checkpoint = Checkpoint(getattr(checkpoints, request.param)(directory / "checkpoint", depth=2))
    controlnet = checkpoints.controlnet(checkpoint.path, directory / "edges", 1)
    names = export_onnx(checkpoint, directory / "onnx", OnnxOptions("float32", {"edges": controlnet}))
    rows, latents = parse_rows(f"1:2:{ROWS}"), parse_latents("4x4:16x16:32x32")
    for kind, wanted in ((INPUTS, names), (LINEAR, names[:2])):
        builder = EngineBuilder(
            BuildSettings(directory / "onnx", directory / kind, rows, latents, TENSORRT_RTX, weights=kind)
        )
        for name in wanted:
            builder.build(name)
    return Exported(checkpoint, controlnet, Runtime("tensorrt-rtx", directory / INPUTS), directory / "onnx")


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> addressed_engines.Runs:
    return addressed_engines.use(monkeypatch)


def lora(exported: Exported, directory: Path, seed: int) -> CanonicalLora:
    shapes = BaseModules.of(exported.checkpoint).shapes
    return Canonicaliser(exported.checkpoint).read(
        lora_files.kohya(shapes, seed=seed).save(directory / f"{seed}.safetensors")
    )


def inputs(exported: Exported, rows: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(rows)
    given = {
        name: torch.randn(tensor.shape, generator=random) for name, tensor in example(exported.checkpoint, rows).items()
    }
    return given | {"TIMESTEPS": torch.linspace(100, 900, rows)[:, None]}


def test_a_unet_follows_its_loras(exported: Exported, tmp_path: Path) -> None:
    ours = UNet(exported.checkpoint, CPU, FLOAT, exported.runtime)
    theirs = UNet(exported.checkpoint, CPU, FLOAT)
    a, b = (lora(exported, tmp_path, seed) for seed in (1, 2))
    seen = []
    for loras in ([], [(a, 1.0)], [(b, 0.5)], [(a, 1.0), (b, 0.5)], [(a, 1.0)], []):
        for unet in (ours, theirs):
            unet.patcher.apply(loras)
        seen.append(ours(inputs(exported, 2)).clone())
        torch.testing.assert_close(seen[-1], theirs(inputs(exported, 2)), rtol=0, atol=1e-5)
    assert torch.equal(seen[0], seen[5])
    assert torch.equal(seen[1], seen[4])
    changes = [float((seen[index] - seen[index + 1]).abs().max()) for index in range(5)]
    assert min(changes) > 1e-3, changes
    assert ours.beside is None
    assert ours.stacks is None


@pytest.mark.parametrize("kind", [INPUTS, LINEAR])
def test_what_engines_hold_as_constants_is_refused(exported: Exported, tmp_path: Path, kind: str) -> None:
    unet = UNet(exported.checkpoint, CPU, FLOAT, replace(exported.runtime, engines=exported.onnx.parent / kind))
    before, canonicaliser = unet(inputs(exported, 1)).clone(), Canonicaliser(exported.checkpoint)
    file, width = tmp_path / "norm.safetensors", exported.checkpoint.unet_config["block_out_channels"][0]
    name = lora_files.kohya_name("unet", "conv_norm_out")
    norms = {f"{name}.w_norm": torch.ones(width), f"{name}.b_norm": torch.ones(width)}
    lora_files.MadeLora(norms).save(file)
    with pytest.raises(InvalidRequestError, match=r"unet\.conv_norm_out.*: it is constant in an engine"):
        unet.patcher.apply([(canonicaliser.read(file), 1.0)])
    of_store = Canonicaliser(exported.checkpoint, constants=engine_constants(exported.onnx.parent / kind, ("unet",)))
    with pytest.raises(InvalidRequestError, match=r"^unet\.conv_norm_out.*: it is constant in an engine"):
        of_store.read(file)
    shapes = BaseModules.of(exported.checkpoint).shapes["unet"]
    linear = {module: shape for module, shape in shapes.items() if len(shape) == 2}
    convolutions = canonicaliser.read(lora_files.kohya({"unet": shapes}).save(tmp_path / "all.safetensors"))
    if kind == LINEAR:
        with pytest.raises(
            InvalidRequestError, match=r"changes unet\.[a-z0-9_.]*conv[a-z0-9_]*: it is constant in an engine"
        ):
            unet.patcher.apply([(convolutions, 1.0)])
        with pytest.raises(InvalidRequestError) as told:
            of_store.read(tmp_path / "all.safetensors")
        named = re.match(r"unet\.(\S+): it is constant in an engine", str(told.value))
        assert named and len(shapes[named[1]]) == 4
    else:
        assert of_store.read(tmp_path / "all.safetensors").modules == convolutions.modules
    assert torch.equal(unet(inputs(exported, 1)), before)
    adapted = of_store.read(lora_files.kohya({"unet": linear}).save(tmp_path / "linear.safetensors"))
    theirs = UNet(exported.checkpoint, CPU, FLOAT)
    for each in (unet, theirs):
        each.patcher.apply([(adapted, 1.0)])
    torch.testing.assert_close(unet(inputs(exported, 1)), theirs(inputs(exported, 1)), rtol=0, atol=1e-5)


def test_a_controlnet_and_its_residuals(exported: Exported) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*exported.checkpoint.default_size, 3), dtype=np.uint8)

    def residuals(runtime: Runtime) -> torch.Tensor:
        network = ControlNet(
            exported.controlnet, exported.checkpoint, CPU, FLOAT, lambda key: picture, runtime, "controlnet_edges"
        )
        given = inputs(exported, 2)
        given["LATENTS"] = given["LATENTS"][:, : exported.checkpoint.latent_channels]
        found, failures = network(given, [ControlNetUse("edges", ("key",), 0.8, 0.0, 1.0, False)] * 2)
        assert not failures
        return found

    ours, theirs = residuals(exported.runtime), residuals(Runtime())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    unets = [UNet(exported.checkpoint, CPU, FLOAT, runtime) for runtime in (exported.runtime, Runtime())]
    found = [unet.decode(unet.encode(inputs(exported, 2)), ours).clone() for unet in unets]
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    assert (found[0] - unets[0](inputs(exported, 2))).abs().max() > 1e-3


def test_texts_with_loras_and_what_modules_encode_instead(
    exported: Exported, tmp_path: Path, runs: addressed_engines.Runs
) -> None:
    file = lora_files.kohya(BaseModules.of(exported.checkpoint).shapes).save(tmp_path / "lora.safetensors")
    (tmp_path / "catalogue").mkdir()
    widths = {"sdxl": {"clip_l": 16, "clip_g": 24}, "sd15": {"emb_params": 16}}[exported.checkpoint.family]
    vectors = {name: torch.ones(1, width) for name, width in widths.items()}
    save_file(vectors, tmp_path / "catalogue" / "newword.safetensors")
    catalogue = Catalogue(tmp_path / "catalogue")
    ours, theirs = (
        PromptEncoder(exported.checkpoint, CPU, FLOAT, lora_directory=tmp_path, catalogue=catalogue, runtime=runtime)
        for runtime in (exported.runtime, Runtime())
    )
    engines = ["text_encoder", *(["text_encoder_2"] if exported.checkpoint.family == "sdxl" else [])]
    adapted = Canonicaliser(exported.checkpoint).read(file)

    def compare(texts: list[Text], by_engines: bool) -> None:
        before = runs.calls.copy()
        found, wanted = (encoder.encode(texts) for encoder in (ours, theirs))
        assert all((runs.calls[name] > before[name]) == by_engines for name in engines)
        for text in texts:
            torch.testing.assert_close(found[text].tokens, wanted[text].tokens, rtol=0, atol=1e-5)
            if wanted[text].pooled is not None:
                torch.testing.assert_close(found[text].pooled, wanted[text].pooled, rtol=0, atol=1e-5)

    compare([Text("a red circle"), Text("")], by_engines=True)
    compare([Text("a red circle", clip_skip=1)], by_engines=False)
    compare([Text("a newword circle")], by_engines=False)  # of a textual inversion, which no engine knows
    compare([Text("a red circle", chunks=2)], by_engines=True)  # A1111's weights would divide by a mean that is near 0
    compare([Text(f"{number} circles") for number in range(9)], by_engines=False)  # more rows than it was built for
    before = ours.encode([Text("a blue square")])[Text("a blue square")]
    for encoder in (ours, theirs):
        encoder._loras._patcher.apply([(adapted, 1.0)])
        encoder._cache.clear()
    compare([Text("a blue square")], by_engines=True)
    assert (ours.encode([Text("a blue square")])[Text("a blue square")].tokens - before.tokens).abs().max() > 0.01


def test_pictures(exported: Exported) -> None:
    vae = exported.checkpoint.load_vae(CPU, FLOAT)
    height, width = (side // exported.checkpoint.vae_scale_factor for side in exported.checkpoint.default_size)
    shape = (3, exported.checkpoint.latent_channels, height, width)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, wanted = (runtime.decoder(vae, CPU)(latents) for runtime in (exported.runtime, Runtime()))
    assert found.shape == wanted.shape
    assert found.dtype == torch.uint8
    assert (found.int() - wanted.int()).abs().max() <= 1


def test_engines_of_another_network_are_refused(exported: Exported, tmp_path: Path) -> None:
    unet = exported.checkpoint.load_unet(CPU, FLOAT)
    unet.conv_in.weight.data += 1
    with pytest.raises(EngineMismatchError, match="engine unet_encoder: it was built from another checkpoint"):
        exported.runtime.unet(unet, CPU, FLOAT)
    with pytest.raises(EngineMismatchError, match="engine text_encoder: it was built from another checkpoint"):
        PromptEncoder(exported.checkpoint, CPU, torch.float16, runtime=exported.runtime)
    with pytest.raises(EngineMismatchError, match="another type of its weights"):
        UNet(exported.checkpoint, CPU, torch.float16, exported.runtime)
    vae = exported.checkpoint.load_vae(CPU, FLOAT)
    next(vae.decoder.parameters()).data += 1
    with pytest.raises(EngineMismatchError, match="engine vae_decoder: it was built from another checkpoint"):
        exported.runtime.decoder(vae, CPU)
    with pytest.raises(EngineMismatchError, match="engine controlnet_edges: it was built from another checkpoint"):
        ControlNet(
            checkpoints.controlnet(exported.checkpoint.path, tmp_path / "edges", 2),
            exported.checkpoint,
            CPU,
            FLOAT,
            lambda key: np.zeros(0),
            exported.runtime,
            "controlnet_edges",
        )


def test_what_was_compiled_is_kept_and_read_again(exported: Exported, runs: addressed_engines.Runs) -> None:
    engines = exported.runtime.engines
    files = [engines / f"unet_{half}.a-GPU-{tensorrt_rtx.__version__}.cache" for half in ("encoder", "decoder")]
    for file in files:
        file.unlink(missing_ok=True)
    UNet(exported.checkpoint, CPU, FLOAT, exported.runtime)
    assert [file.read_bytes() for file in files] == [addressed_engines.COMPILED] * 2
    assert runs.caches == []
    UNet(exported.checkpoint, CPU, FLOAT, exported.runtime)
    assert runs.caches == [addressed_engines.COMPILED] * 2
    assert not list(engines.glob("*.new"))
    files[0].write_bytes(b"of another driver")
    UNet(exported.checkpoint, CPU, FLOAT, exported.runtime)
    assert files[0].read_bytes() == addressed_engines.COMPILED


def test_other_batches_and_sizes(exported: Exported) -> None:
    """More of them than are kept, there and back; what no engine was built for is refused."""
    ours, theirs = (UNet(exported.checkpoint, CPU, FLOAT, runtime) for runtime in (exported.runtime, Runtime()))
    calls = []
    for rows in (1, 2, 3, ROWS):
        for height, width in ((4, 4), (8, 12), (16, 16), (32, 4), (4, 32)):
            latents = torch.randn(rows, exported.checkpoint.latent_channels, height, width)
            calls.append(inputs(exported, rows) | {"LATENTS": latents})
    assert len(calls) > MAX_SHAPES
    for given in [*calls, *reversed(calls)]:
        torch.testing.assert_close(ours(given), theirs(given), rtol=0, atol=1e-5)
    for rows, side in ((ROWS + 1, 16), (1, 36)):
        latents = torch.zeros(rows, exported.checkpoint.latent_channels, side, side)
        with pytest.raises(EngineShapeError, match=rf" is \[{rows}, .*may be .* to"):
            ours(inputs(exported, rows) | {"LATENTS": latents})
