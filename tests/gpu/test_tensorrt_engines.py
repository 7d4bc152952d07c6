"""Engines of both runtimes, built of the demo family and run on a GPU: against modules, with LoRAs, and in services."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import demo_engines
import lora_files
from demo_engines import DEFAULT, EDGES, MOST_ROWS, NETWORKS, Built, Modules, copied, exact_step, given, same, step
from swiftdiffusion.export.onnx.function_bodies import INSTANCE, REDUCE
from swiftdiffusion.export.tensorrt.verification import TOLERANCES, relative_error
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.controlnets.network import ControlNet
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.prompt_encoding import PromptEncoder, Text
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from swiftdiffusion.python_backends.networks.unet import UNet, arguments
from swiftdiffusion.python_backends.networks.unet_halves import residual_size
from swiftdiffusion.python_backends.request.completed import ControlNetUse
from swiftdiffusion.python_backends.tensorrt.engine import MAX_SHAPES, Engine
from swiftdiffusion.python_backends.tensorrt.flavours import FLAVOURS, Flavour, TensorRTUnavailableError
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMismatchError, Machine
from swiftdiffusion.python_backends.tensorrt.runtime_cache import cache_path
from swiftdiffusion.python_backends.tensorrt.shapes import EngineShapeError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GPU, HALF = torch.device("cuda", 0), torch.float16
TOLERANCE = TOLERANCES["float16"]


def capability() -> str:
    return "{}.{}".format(*torch.cuda.get_device_capability(GPU))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(demo_engines.DEMO / "weights")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_engines.export(tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def other_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_engines.export(tmp_path_factory.mktemp("onnx"), INSTANCE)


@pytest.fixture(scope="module")
def modules() -> dict[str, Modules]:
    return demo_engines.modules()


@pytest.fixture(scope="module", params=FLAVOURS.values(), ids=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    found: Flavour = request.param
    try:
        found.require()
        found.check_capability(capability())
    except TensorRTUnavailableError as error:
        pytest.skip(str(error))
    return found


@pytest.fixture(scope="module")
def built(flavour: Flavour, graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return demo_engines.build(flavour, GPU, graphs, tmp_path_factory.mktemp("engines"), NETWORKS)


@pytest.fixture(scope="module")
def loras(checkpoint: Checkpoint) -> dict[str, CanonicalLora]:
    read = Canonicaliser(checkpoint).read
    return {name: read(demo_engines.DEMO / "loras" / f"{name}.safetensors") for name in ("hatched", "night")}


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return relative_error({"": found}, {"": wanted})


def test_a_gpu_that_a_runtime_has_no_engines_for_is_refused_by_us() -> None:
    refused = []
    for each in FLAVOURS.values():
        try:
            each.check_capability(capability())
        except TensorRTUnavailableError as said:
            assert "--runtime torch" in str(said)
            refused.append(each)
    if not refused:
        pytest.skip(f"every runtime has engines for compute capability {capability()}")
    for each in refused:
        if importlib.util.find_spec(each.package):
            with pytest.raises(TensorRTUnavailableError, match="--runtime torch"):
                Machine.here(each, 0)


@pytest.mark.parametrize("rows", [1, 2, MOST_ROWS])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_engine_computes_what_its_modules_do(
    built: Built, modules: dict[str, Modules], name: str, rows: int
) -> None:
    engine = built.engine(name)
    for size in built.sizes:
        inputs = built.inputs(name, rows, size)
        wanted = modules[name].run(inputs)
        for _ in range(2):
            assert relative_error(engine.run(inputs), wanted) <= built.tolerance(name), size


def test_loras_there_and_back(built: Built, checkpoint: Checkpoint, loras: dict[str, CanonicalLora]) -> None:
    """Contexts and graphs are those of the first calls, before any LoRA was patched in."""
    unet, exact = built.running(), checkpoint.load_unet(GPU, torch.float32)
    patcher = Patcher({"unet": exact})
    calls = [given(rows, size) for rows in (1, 2) for size in built.sizes]
    untouched = [step(unet, tensors, GPU) for tensors in calls]
    seen: dict[str, list[torch.Tensor]] = {}
    for name, scale in (("hatched", 1.0), ("night", 0.7), ("hatched", 1.0)):
        for each in (unet.patcher, patcher):
            assert each.apply([(loras[name], scale)])
        found = [step(unet, tensors, GPU) for tensors in calls]
        for tensors, prediction in zip(calls, found, strict=True):
            assert error(prediction, exact_step(exact, tensors, GPU)) <= TOLERANCE
        assert all(map(torch.equal, found, seen.setdefault(name, found)))
    for others in (seen["night"], untouched):
        assert not any(map(torch.equal, seen["hatched"], others))
    unet.patcher.apply([])
    assert all(map(torch.equal, [step(unet, tensors, GPU) for tensors in calls], untouched))


def test_the_next_call_sees_a_patch_at_once(
    built: Built, checkpoint: Checkpoint, loras: dict[str, CanonicalLora]
) -> None:
    """Patch and call follow one another on a stream, with nobody waiting for the GPU in between."""
    unet, tensors = built.running(), given(2)
    wanted = []
    for scale in (0.0, 1.0):
        unet.patcher.apply([(loras["night"], scale)])
        torch.cuda.synchronize()
        wanted.append(step(unet, tensors, GPU))
    assert not torch.equal(*wanted)
    prepared = unet.patcher.prepare(loras["night"])
    with torch.cuda.stream(torch.cuda.Stream()):
        for round_ in range(20):
            unet.patcher.apply([(prepared, float(round_ % 2))])
            assert torch.equal(step(unet, tensors, GPU), wanted[round_ % 2]), round_
    torch.cuda.synchronize()


def test_more_shapes_than_are_kept(built: Built, checkpoint: Checkpoint) -> None:
    """The decoder goes on with memory that it adopted of the encoder, when that has made other memory for a shape."""
    sizes = [*built.sizes, (16, 8), (8, 32), (32, 32)] if len(built.sizes) > 1 else list(built.sizes)
    calls = [given(rows, size) for size in sizes for rows in range(1, MOST_ROWS + 1)]
    assert len(calls) > MAX_SHAPES or len(sizes) == 1
    unet = built.running()
    wanted = [step(unet, tensors, GPU) for tensors in calls]
    for order in (range(len(calls)), reversed(range(len(calls)))):
        for number in order:
            assert torch.equal(step(unet, calls[number], GPU), wanted[number])
    tensors = calls[0]
    taken = arguments(tensors, GPU, HALF)
    others = [each.clone() for each in unet.encoder(*arguments(given(1, sizes[0], seed=1), GPU, HALF))]
    unet.encoder(*taken)
    foreign = [each.clone() for each in others]
    different = unet.decoder(taken[2], *foreign).clone()
    assert all(map(torch.equal, others, foreign))
    assert not torch.equal(different, wanted[0])
    with torch.inference_mode():
        assert torch.equal(step(unet, tensors, GPU), wanted[0])


def test_what_was_compiled_is_kept_beside_the_plan(
    built: Built, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if not built.flavour.compiles_at_load:
        pytest.skip(f"{built.flavour.title} compiles nothing at load")
    name = "unet_encoder"
    for suffix in ("plan", "json"):
        shutil.copy(built.engines / f"{name}.{suffix}", tmp_path)
    copy, inputs = replace(built, engines=tmp_path), built.inputs(name, 2, DEFAULT)
    path = cache_path(tmp_path / f"{name}.plan", Machine.here(built.flavour, 0))
    assert not path.exists()
    cold = copied(copy.engine(name).run(inputs))
    kept = path.read_bytes()
    assert kept
    with caplog.at_level(logging.WARNING):
        warm = copied(copy.engine(name).run(inputs))
    assert "is not used" not in caplog.text
    assert path.read_bytes() == kept
    assert same(warm, cold)
    path.write_bytes(b"of another driver")
    assert same(copy.engine(name).run(inputs), cold)
    assert "is not used" in caplog.text
    assert path.read_bytes() != b"of another driver"


def test_what_an_engine_does_not_take(built: Built, checkpoint: Checkpoint, tmp_path: Path) -> None:
    engine = built.engine("unet_encoder")
    for rows, size in ((MOST_ROWS + 1, DEFAULT), (1, (64, 64))):
        with pytest.raises(EngineShapeError, match="of this engine may be"):
            engine.run(built.inputs("unet_encoder", rows, size))
    inputs = built.inputs("unet_encoder", 1, DEFAULT)
    with pytest.raises(EngineShapeError, match="the inputs are"):
        engine.run(inputs | {"more": torch.zeros(1)})
    with pytest.raises(EngineMismatchError, match="it was built from another checkpoint"):
        Engine.load(built.engines, "vae_decoder", GPU, built.flavour, digest=64 * "0")
    with pytest.raises(EngineMismatchError, match="the network has nothing"):
        Engine.load(built.engines, "unet_encoder", GPU, built.flavour)
    norm, name = tmp_path / "norm.safetensors", lora_files.kohya_name("unet", "conv_norm_out")
    channels = checkpoint.load_unet(torch.device("cpu"), HALF).conv_norm_out.num_channels
    vectors = {f"{name}.w_norm": torch.ones(channels), f"{name}.b_norm": torch.ones(channels)}
    lora_files.MadeLora(vectors).save(norm)
    with pytest.raises(InvalidRequestError, match=r"changes unet\.conv_norm_out.*: it is constant in an engine"):
        built.running().patcher.apply([(Canonicaliser(checkpoint).read(norm), 1.0)])


def test_both_forms_of_norms(
    flavour: Flavour, graphs: Path, other_graphs: Path, modules: dict[str, Modules], tmp_path: Path
) -> None:
    name, found = "unet_encoder", []
    for norms, onnx in ((REDUCE, graphs), (INSTANCE, other_graphs)):
        built = demo_engines.build(flavour, GPU, onnx, tmp_path / norms, (name,), plugins=False)
        assert (built.metadata(name).norms, built.metadata(name).plugins) == (norms, ())
        inputs = built.inputs(name, 2, DEFAULT)
        found.append(copied(built.engine(name).run(inputs)))
        assert relative_error(found[-1], modules[name].run(inputs)) <= TOLERANCE
    assert relative_error(*found) <= TOLERANCE


@torch.no_grad()
def test_a_unet_and_a_controlnet_as_services_have_them(built: Built, checkpoint: Checkpoint) -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    unets = [UNet(checkpoint, GPU, HALF, runtime, patches=True) for runtime in (built.runtime, Runtime())]
    controlnets = [
        ControlNet(EDGES, checkpoint, GPU, HALF, lambda _: image, runtime, "controlnet_edges")
        for runtime in (built.runtime, Runtime())
    ]
    for rows in (2, 1, 2):
        tensors = given(rows)
        ours, wanted = (unet(tensors) for unet in unets)
        assert error(ours, wanted) <= TOLERANCE
        uses = [ControlNetUse("edges", ("a" * 64,), 0.8, 0.0, 1.0, False)] * rows
        (steering, failures), (expected, _) = (network(tensors, uses) for network in controlnets)
        assert not failures
        assert error(steering, expected) <= TOLERANCE
        halfway = [unet.encode(tensors) for unet in unets]
        assert expected.shape == (rows, residual_size(halfway[0].halfway))
        steered, reference = (unet.decode(each, expected.clone()) for unet, each in zip(unets, halfway, strict=True))
        assert error(steered, reference) <= TOLERANCE
        assert not torch.equal(steered, ours)
        assert torch.equal(unets[0](tensors), ours)


def test_prompts_and_pictures(built: Built, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (PromptEncoder(checkpoint, GPU, HALF, runtime=runtime) for runtime in (built.runtime, Runtime()))
    plain, skipping = [Text("a red circle above a blue square"), Text("")], Text("a green star", clip_skip=1)
    found, wanted = ours.encode(plain), theirs.encode(plain)
    for text in plain:
        assert error(found[text].tokens, wanted[text].tokens) <= TOLERANCE
        assert error(found[text].pooled, wanted[text].pooled) <= TOLERANCE
    vae = checkpoint.load_vae(GPU, HALF).eval()
    latents = torch.randn(2, 4, *DEFAULT, generator=torch.Generator().manual_seed(0)).to(GPU)
    pixels = built.runtime.decoder(vae, GPU)(latents)
    expected = Runtime().decoder(vae, GPU)(latents)
    assert pixels.shape == expected.shape
    assert (pixels.int() - expected.int()).abs().float().mean() < 1

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an engine was run")

    monkeypatch.setattr(Engine, "run", refuse)
    assert error(ours.encode([skipping])[skipping].tokens, theirs.encode([skipping])[skipping].tokens) <= TOLERANCE
