"""A small engine with every plugin, built, run and refitted on a GPU."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("tensorrt", reason="needs TensorRT, which NVIDIA's package index has")

import onnx
from torch.nn import functional

from swiftdiffusion.export.tensorrt.engines import BuildSettings, EngineBuilder
from swiftdiffusion.export.tensorrt.profiles import parse_rows
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora, Group
from swiftdiffusion.python_backends.tensorrt.engine import Engine
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMetadata
from swiftdiffusion.python_backends.tensorrt.refit import EnginePatcher, EngineRefitter
from swiftdiffusion.python_backends.tensorrt.shapes import EngineShapeError
from swiftdiffusion.python_backends.tensorrt.weights import read_weight_map

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NAME = "unet_encoder"
DEVICE, HALF = torch.device("cuda", 0), torch.float16
CHANNELS, WIDTH = 64, 48
PLUGIN = 'plugin_namespace = "swiftdiffusion", plugin_version = "1", aot = 1'
GRAPH = f"""
<ir_version: 10, opset_import: ["" : 18, "swiftdiffusion" : 1]>
g (float16[rows, 4, height, width] latents, float16[rows, {CHANNELS}] embedding)
  => (float16[rows, {CHANNELS}, height, width] mid, float16[rows, cells, {WIDTH}] gated)
{{
    hidden = Conv (latents, kernel)
    first = swiftdiffusion.GroupNormSiLU <groups = 8, eps = 0.00001, silu = 1, {PLUGIN}> (hidden, weight, bias)
    mid = swiftdiffusion.AddGroupNormSiLU <groups = 8, eps = 0.00001, silu = 0, {PLUGIN}> (
        first, embedding, weight, bias)
    shape = Constant <value_ints = [0, {CHANNELS}, -1]> ()
    flat = Reshape (mid, shape)
    rows_of = Transpose <perm = [0, 2, 1]> (flat)
    projected = MatMul (rows_of, projection)
    gated = swiftdiffusion.GEGLU <{PLUGIN}> (projected)
}}
"""


class Network(torch.nn.Module):
    """What the graph computes, in float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(4, CHANNELS, 1, bias=False)
        self.proj = torch.nn.Linear(CHANNELS, 2 * WIDTH, bias=False)
        self.norm = torch.nn.GroupNorm(8, CHANNELS)
        torch.nn.init.normal_(self.norm.weight)
        torch.nn.init.normal_(self.norm.bias)

    def forward(self, latents: torch.Tensor, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = functional.silu(self.norm(self.conv(latents)))
        mid = self.norm(first + embedding[..., None, None])
        hidden, gate = self.proj(mid.flatten(2).transpose(1, 2)).chunk(2, dim=-1)
        return mid, hidden * functional.gelu(gate)


@dataclass(frozen=True)
class Built:
    directory: Path
    engine: Engine


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    directory = tmp_path_factory.mktemp("engines")
    network = Network().half()
    model = onnx.parser.parse_model(GRAPH)
    tensors = {
        "kernel": network.conv.weight,
        "weight": network.norm.weight,
        "bias": network.norm.bias,
        "projection": network.proj.weight.T,
    }
    for name, tensor in tensors.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(tensor.detach().numpy().copy(), name))
    onnx.save(model, directory / f"{NAME}.onnx")
    places = {
        "conv": {"initializer": "kernel", "transposed": False, "shape": [CHANNELS, 4, 1, 1]},
        "proj": {"initializer": "projection", "transposed": True, "shape": [2 * WIDTH, CHANNELS]},
    }
    (directory / f"{NAME}.weights.json").write_text(json.dumps(places))
    engines = directory / "engines"
    settings = BuildSettings(directory, engines, parse_rows("1,2"), latents=(16, 16), workspace_bytes=2**28)
    metadata = EngineBuilder(settings).build(NAME)
    assert metadata.plugins == ("GroupNormSiLU", "AddGroupNormSiLU", "GEGLU")
    assert metadata == EngineMetadata.read(engines, NAME)
    return Built(engines, Engine.load(engines, NAME, DEVICE))


def inputs(rows: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(rows)
    shapes = {"latents": (rows, 4, 16, 16), "embedding": (rows, CHANNELS)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def assert_near(found: dict[str, torch.Tensor], network: Network, rows: int) -> None:
    given = inputs(rows)
    with torch.no_grad():
        wanted = network(given["latents"], given["embedding"])
    for name, tensor in zip(("mid", "gated"), wanted, strict=True):
        assert (found[name].float().cpu() - tensor).norm() <= 5e-3 * tensor.norm(), name


@pytest.mark.parametrize("rows", [1, 2, 1])
def test_outputs(built: Built, rows: int) -> None:
    network = Network().half().float()
    assert_near(built.engine.run(inputs(rows)), network, rows)


def test_other_shapes_are_refused(built: Built) -> None:
    with pytest.raises(EngineShapeError, match=r"latents is \[3, 4, 16, 16\]"):
        built.engine.run(inputs(3) | {"embedding": torch.zeros(1, CHANNELS)})


def lora(seed: int, modules: tuple[str, ...]) -> CanonicalLora:
    random = torch.Generator().manual_seed(seed)
    shapes = {"conv": (CHANNELS, 4), "proj": (2 * WIDTH, CHANNELS)}
    groups = []
    for module in modules:
        rows, columns = shapes[module]
        factors = {
            "up": torch.randn(1, rows, 2, generator=random),
            "down": torch.randn(1, 2, columns, generator=random),
        }
        groups.append(Group("unet", "low_rank", (module,), (0.1,), factors))
    return CanonicalLora(tuple(groups))


def test_loras_there_and_back(built: Built) -> None:
    weights = read_weight_map(built.directory, NAME)
    network = Network().half().to(DEVICE)
    patcher = EnginePatcher({"unet": network}, [("unet", EngineRefitter(built.engine), weights)], HALF)

    def outputs() -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in built.engine.run(inputs(2)).items()}

    def reference() -> Network:
        exact = Network()
        exact.load_state_dict(network.state_dict())
        return exact

    untouched = outputs()
    sets = {"a": [(lora(1, ("proj",)), 1.0)], "b": [(lora(2, ("conv",)), 0.5)]}
    seen = {}
    for name in ("a", "b", "a"):
        patcher.apply(sets[name])
        found = outputs()
        assert_near(found, reference(), 2)
        if name in seen:
            assert all(torch.equal(found[output], tensor) for output, tensor in seen[name].items())
        seen[name] = found
    assert not torch.equal(seen["a"]["gated"], seen["b"]["gated"])
    patcher.apply([])
    again = outputs()
    assert all(torch.equal(again[output], tensor) for output, tensor in untouched.items())
