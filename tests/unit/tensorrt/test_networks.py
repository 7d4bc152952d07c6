"""Engines in the place of a pipeline's networks: the same numbers with LoRAs and without, ControlNets, texts, pictures.

ONNX Runtime computes them from the files that engines are built from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import checkpoints
import lora_files
from onnx_engines import OnnxEngine
from swiftdiffusion.export.onnx.checkpoint_export import OnnxOptions, export_onnx
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.controlnets.network import ControlNet
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.digests import weights_digest
from swiftdiffusion.python_backends.networks.prompt_encoding import PromptEncoder, Text
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from swiftdiffusion.python_backends.networks.unet import UNet, example
from swiftdiffusion.python_backends.request.completed import ControlNetUse
from swiftdiffusion.python_backends.tensorrt import networks

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, FLOAT = torch.device("cpu"), torch.float32


@dataclass(frozen=True)
class Exported:
    checkpoint: Checkpoint
    controlnet: Path
    runtime: Runtime


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    directory = tmp_path_factory.mktemp(request.param)
    checkpoint = Checkpoint(getattr(checkpoints, request.param)(directory / "checkpoint", depth=2))
    controlnet = checkpoints.controlnet(checkpoint.path, directory / "edges", 1)
    export_onnx(checkpoint, directory / "onnx", OnnxOptions("float32", {"edges": controlnet}))
    return Exported(checkpoint, controlnet, Runtime("tensorrt-rtx", directory / "onnx"))


@pytest.fixture(autouse=True)
def _onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "Engine", OnnxEngine)


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


def test_what_engines_hold_as_constants_is_refused(exported: Exported, tmp_path: Path) -> None:
    unet = UNet(exported.checkpoint, CPU, FLOAT, exported.runtime)
    before = unet(inputs(exported, 1))
    file, width = tmp_path / "norm.safetensors", exported.checkpoint.unet_config["block_out_channels"][0]
    name = lora_files.kohya_name("unet", "conv_norm_out")
    norms = {f"{name}.w_norm": torch.ones(width), f"{name}.b_norm": torch.ones(width)}
    lora_files.MadeLora(norms).save(file)
    with pytest.raises(InvalidRequestError, match=r"unet\.conv_norm_out.* is constant in an engine"):
        unet.patcher.apply([(Canonicaliser(exported.checkpoint).read(file), 1.0)])
    assert torch.equal(unet(inputs(exported, 1)), before)


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


def test_texts_with_loras_and_what_modules_encode_instead(exported: Exported, tmp_path: Path) -> None:
    file = lora_files.kohya(BaseModules.of(exported.checkpoint).shapes).save(tmp_path / "lora.safetensors")
    ours, theirs = (
        PromptEncoder(exported.checkpoint, CPU, FLOAT, lora_directory=tmp_path, runtime=runtime)
        for runtime in (exported.runtime, Runtime())
    )
    engines = [engine._engine for engine in ours._encoders._engines]
    adapted = Canonicaliser(exported.checkpoint).read(file)

    def compare(texts: list[Text], by_engines: bool) -> None:
        before = [engine.calls for engine in engines]
        found, wanted = (encoder.encode(texts) for encoder in (ours, theirs))
        assert [engine.calls for engine in engines] == [count + by_engines for count in before]
        for text in texts:
            torch.testing.assert_close(found[text].tokens, wanted[text].tokens, rtol=0, atol=1e-5)
            if wanted[text].pooled is not None:
                torch.testing.assert_close(found[text].pooled, wanted[text].pooled, rtol=0, atol=1e-5)

    compare([Text("a red circle"), Text("")], by_engines=True)
    compare([Text("a red circle", clip_skip=1)], by_engines=False)
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


def test_engines_are_asked_for_their_network(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest that an export writes into its files is that of the network as it is loaded to be served."""
    asked: dict[str, str | None] = {}

    def load(directory: Path, name: str, *others: Any, digest: str | None = None, **more: Any) -> OnnxEngine:
        engine = OnnxEngine(directory, name, *others, **more, **({} if digest is None else {"digest": digest}))
        asked[name] = engine.digest
        return engine

    monkeypatch.setattr(OnnxEngine, "load", load)
    checkpoint, runtime = exported.checkpoint, exported.runtime
    UNet(checkpoint, CPU, FLOAT, runtime)
    PromptEncoder(checkpoint, CPU, FLOAT, runtime=runtime)
    runtime.decoder(checkpoint.load_vae(CPU, FLOAT), CPU)
    ControlNet(exported.controlnet, checkpoint, CPU, FLOAT, lambda key: np.zeros(0), runtime, "controlnet_edges")
    for name, digest in asked.items():
        said = ir.load(runtime.engines / f"{name}.onnx").metadata_props
        assert said["swiftdiffusion.weights_digest"] == digest, name
    encoders = {"text_encoder", *(["text_encoder_2"] if checkpoint.family == "sdxl" else [])}
    assert asked.keys() == {"unet_encoder", "unet_decoder", "controlnet_edges", "vae_decoder", *encoders}
    assert weights_digest(checkpoint.load_unet(CPU, torch.float16)) != asked["unet_encoder"]
