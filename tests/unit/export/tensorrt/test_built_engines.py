"""Engines of the demo family, built for real by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'swiftdiffusion[tensorrt-rtx]'")

import onnx
import onnx_ir as ir
from typer.testing import CliRunner

import checkpoints
from swiftdiffusion.clients.cli import app
from swiftdiffusion.export.onnx.checkpoint_export import OnnxOptions, export_onnx
from swiftdiffusion.export.onnx.checkpoint_parts import unet_parts
from swiftdiffusion.export.onnx.graph_part import Sizes
from swiftdiffusion.export.onnx.torch_graph import torch_graph
from swiftdiffusion.export.tensorrt.engines import CONSTANT, LINEAR, BuildError, BuildSettings, EngineBuilder
from swiftdiffusion.export.tensorrt.graph import Graph, names
from swiftdiffusion.export.tensorrt.profiles import parse_latents, parse_rows
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.tensorrt.engine import Engine
from swiftdiffusion.python_backends.tensorrt.flavours import TENSORRT_RTX, TensorRTUnavailableError
from swiftdiffusion.python_backends.tensorrt.metadata import Bounds, EngineMetadata, EngineMismatchError, Machine

pytestmark = pytest.mark.usefixtures("one_thread")

DEMO = Path(__file__).parents[4] / "export" / "demo"
HALVES = ("unet_encoder", "unet_decoder")
CAPABILITIES = {"for 8.9": ("8.9",), "for its own choice": ()}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("onnx")
    options = OnnxOptions("float16", {"edges": DEMO / "controlnets" / "edges"})
    export_onnx(Checkpoint(DEMO / "weights"), directory, options)
    return directory


def settings(graphs: Path, engines: Path) -> BuildSettings:
    rows, latents = parse_rows("1:2:16"), parse_latents("4x4:16x16:64x64")
    return BuildSettings(graphs, engines, rows, latents, TENSORRT_RTX)


def weights_bytes(graph: Graph, names: tuple[str, ...]) -> int:
    return sum(tensor.nbytes for tensor in graph.defaults(names).values())


@pytest.fixture(scope="module", params=CAPABILITIES.values(), ids=CAPABILITIES)
def built(request: pytest.FixtureRequest, graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All engines, for any size of picture."""
    engines = tmp_path_factory.mktemp("engines")
    builder = EngineBuilder(replace(settings(graphs, engines), capabilities=request.param))
    for name in names(graphs):
        assert builder.build(name).capabilities == request.param
    return engines


def test_all_networks_are_built(built: Path, graphs: Path) -> None:
    for name in names(graphs):
        graph, metadata = Graph.read(graphs, name), EngineMetadata.read(built, name)
        assert (metadata.runtime, metadata.release[:4], metadata.gpu) == ("tensorrt-rtx", "1.7.", None)
        assert metadata.weights == tuple(graph.weights)
        assert metadata.constants == ()
        assert metadata.digest == graph.digest
        assert metadata.precision == "float16"
        (profile,) = metadata.profiles
        assert profile.keys() == graph.inputs.keys()
        assert {bounds[0][0] for bounds in profile.values()} == {1}
        assert metadata.holds(16)
        assert not metadata.holds(17)
        metadata.check_sources(built, graphs)
        machine = Machine("a GPU", "8.9", metadata.release)
        assert metadata.check(built, TENSORRT_RTX, machine, graph.digest) == built / f"{name}.plan"
        for change, said in (
            ({"compute_capability": "9.0"}, "compute capability is 9.0"),
            ({"release": "1.7.0.1"}, "TensorRT-RTX is 1.7.0.1 here"),
        ):
            with pytest.raises(EngineMismatchError, match=said):
                metadata.check(built, TENSORRT_RTX, replace(machine, **change))
    assert EngineMetadata.read(built, "unet_encoder").weights
    assert EngineMetadata.read(built, "text_encoder").weights
    assert not EngineMetadata.read(built, "controlnet_edges").weights


@pytest.mark.parametrize("kind", [LINEAR, CONSTANT])
def test_weights_are_inputs_and_not_in_the_plan(graphs: Path, tmp_path: Path, kind: str) -> None:
    """What is built with them in it is larger by nearly what they take."""
    all_inputs = EngineBuilder(settings(graphs, tmp_path / "inputs"))
    fewer = EngineBuilder(replace(settings(graphs, tmp_path / kind), weights=kind))
    for name in HALVES:
        graph, outside, inside = Graph.read(graphs, name), all_inputs.build(name), fewer.build(name)
        shapes = graph.weights
        assert set(inside.weights) == {each for each in shapes if kind == LINEAR and len(shapes[each]) == 2}
        assert set(inside.constants) == shapes.keys() - set(inside.weights)
        small, large = ((tmp_path / each / f"{name}.plan").stat().st_size for each in ("inputs", kind))
        assert outside.weights == tuple(shapes)
        assert large - small > 0.5 * weights_bytes(graph, inside.constants)


class NoConvolutions(EngineBuilder):
    """One that does as if TensorRT took no convolution whose weights come from outside."""

    def _serialised(self, graph: Graph, profiles: list[dict[str, Bounds]], weights: list[str]) -> Any:
        if any(len(graph.weights[weight]) == 4 for weight in weights):
            raise BuildError("no such convolution")
        return super()._serialised(graph, profiles, weights)


def test_convolutions_that_are_not_taken_stay_constant(
    graphs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = NoConvolutions(settings(graphs, tmp_path)).build("unet_encoder")
    shapes = Graph.read(graphs, "unet_encoder").weights
    assert set(metadata.weights) == {name for name, shape in shapes.items() if len(shape) == 2}
    assert set(metadata.constants) == shapes.keys() - set(metadata.weights)
    assert "no such convolution; its convolutions stay constant" in caplog.text


def test_the_other_form_of_norms_is_built(tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoints.sdxl(tmp_path / "checkpoint", depth=2))
    encoder = next(unet_parts(checkpoint, torch.float16, Sizes(2, 16, 16, 4, dynamic=True)))
    ir.save(torch_graph(encoder, "instance"), tmp_path / "unet_encoder.onnx")
    metadata = EngineBuilder(settings(tmp_path, tmp_path / "engines")).build("unet_encoder")
    assert (metadata.norms, metadata.plugins) == ("instance", ())


BROKEN = """
<ir_version: 10, opset_import: ["" : 18]>
vae_decoder (float16[rows, 4, height, width] latents) => (float16[rows, 4, height, width] image)
{ image = Unheard (latents) }
"""
CONTRADICTION = BROKEN.replace("Unheard (latents)", "Conv <kernel_shape = [3, 3]> (latents, kernel)").replace(
    "\n{", "\n<float16[8, 5, 1, 1] kernel>\n{"
)


@pytest.mark.parametrize(("text", "said"), [(BROKEN, "Unheard"), (CONTRADICTION, "(?i)kernel")])
def test_a_graph_that_tensorrt_does_not_take(tmp_path: Path, text: str, said: str) -> None:
    model = onnx.parser.parse_model(text)
    del model.graph.initializer[:]
    if "kernel" in text:
        zeros = onnx.helper.make_tensor("kernel", onnx.TensorProto.FLOAT16, (8, 5, 1, 1), [0.0] * 40)
        model.graph.initializer.append(zeros)
    onnx.save(model, tmp_path / "vae_decoder.onnx")
    with pytest.raises(BuildError, match=said) as refused:
        EngineBuilder(settings(tmp_path, tmp_path / "engines")).build("vae_decoder")
    assert str(tmp_path / "vae_decoder.onnx") in str(refused.value)
    assert not list((tmp_path / "engines").iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_running_one_without_a_gpu(built: Path) -> None:
    with pytest.raises(TensorRTUnavailableError, match=r"GPU 0 is wanted for engines, PyTorch .* sees 0"):
        Engine.load(built, "vae_decoder", torch.device("cuda", 0), TENSORRT_RTX)


def test_the_command(graphs: Path, tmp_path: Path) -> None:
    asked = ["build-engines", "--runtime", "tensorrt-rtx", "--onnx", str(graphs), "--engines", str(tmp_path)]
    choice = ["--network", "text_encoder", "--rows", "1:2:4", "--capability", "8.6", "--capability", "8.9"]
    result = CliRunner().invoke(app, [*asked, *choice])
    assert result.exit_code == 0, result.output
    assert "text_encoder.plan" in result.stdout
    said = json.loads((tmp_path / "text_encoder.json").read_text())
    assert said["capabilities"] == ["8.6", "8.9"]
    again = ["--runtime", "tensorrt-rtx", "--rows", "1:2:4", "--weights", "inputs"]
    assert said["options"] == [*again, "--capability", "8.6", "--capability", "8.9", "--network", "text_encoder"]


def test_a_capability_that_this_release_does_not_know(graphs: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"TensorRT-RTX 1\.7.* does not know compute capability 13\.0"):
        EngineBuilder(replace(settings(graphs, tmp_path), capabilities=("13.0",)))


USED = {
    "BuilderFlag": "REQUIRE_USER_ALLOCATION",
    "CudaGraphStrategy": "WHOLE_GRAPH_CAPTURE",
    "DynamicShapesKernelSpecializationStrategy": "EAGER",
    "ExecutionContextAllocationStrategy": "USER_MANAGED",
    "IBuilderConfig": "num_compute_capabilities set_compute_capability set_flag",
    "ICudaEngine": "create_execution_context create_runtime_config get_tensor_dtype get_tensor_mode "
    "get_tensor_profile_shape",
    "IExecutionContext": "execute_async_v3 get_tensor_shape infer_shapes set_device_memory set_input_shape "
    "set_optimization_profile_async set_tensor_address update_device_memory_size_for_shapes",
    "IRuntimeCache": "deserialize serialize",
    "IRuntimeConfig": "create_runtime_cache cuda_graph_strategy dynamic_shapes_kernel_specialization_strategy "
    "set_execution_context_allocation_strategy set_runtime_cache",
    "Runtime": "deserialize_cuda_engine",
}
"""What running engines uses, which needs a GPU."""


@pytest.mark.parametrize("name", USED)
def test_the_interface_is_the_one_that_is_used(name: str) -> None:
    import tensorrt_rtx

    assert not [member for member in USED[name].split() if not hasattr(getattr(tensorrt_rtx, name), member)]
