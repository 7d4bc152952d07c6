"""Engines of the demo family, built where the tests run, and the modules that they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from swiftdiffusion.export.onnx.checkpoint_export import OnnxOptions, export_onnx
from swiftdiffusion.export.onnx.checkpoint_parts import checkpoint_parts
from swiftdiffusion.export.onnx.graph_part import GraphPart, Sizes
from swiftdiffusion.export.tensorrt.engines import BuildSettings, EngineBuilder
from swiftdiffusion.export.tensorrt.graph import Graph
from swiftdiffusion.export.tensorrt.profiles import input_shapes, parse_latents, parse_rows
from swiftdiffusion.export.tensorrt.references import Tensors, random_inputs
from swiftdiffusion.export.tensorrt.verification import TOLERANCES, relative_error
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.runtimes import RunningUNet, Runtime
from swiftdiffusion.python_backends.networks.unet import arguments
from swiftdiffusion.python_backends.networks.unet_halves import DecoderHalf, EncoderHalf
from swiftdiffusion.python_backends.tensorrt.engine import Engine
from swiftdiffusion.python_backends.tensorrt.flavours import Flavour
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMetadata

DEMO = Path(__file__).parents[2] / "export" / "demo"
EDGES = DEMO / "controlnets" / "edges"
CPU = torch.device("cpu")
NETWORKS = (
    "unet_encoder",
    "unet_decoder",
    "controlnet_edges",
    "controlnet_edges_embedder",
    "text_encoder",
    "text_encoder_2",
    "vae_decoder",
)
MOST_ROWS = 4
ROWS = f"1:2:{MOST_ROWS}"
DEFAULT = (16, 16)
"""The demo family's size, in latent cells."""


@dataclass(frozen=True)
class Built:
    """Engines of one flavour.

    Attributes:
        flavour: What built them and runs them.
        device: Where.
        onnx: Directory of the graphs.
        engines: Directory of the engines.
        sizes: Latents that they take; the first is the default.
    """

    flavour: Flavour
    device: torch.device
    onnx: Path
    engines: Path
    sizes: tuple[tuple[int, int], ...]

    @property
    def runtime(self) -> Runtime:
        """What a service is given."""
        return Runtime(self.flavour.name, self.engines)

    def metadata(self, name: str) -> EngineMetadata:
        """Of an engine."""
        return EngineMetadata.read(self.engines, name)

    def engine(self, name: str) -> Engine:
        """An engine over the weights of its graph."""
        defaults = Graph.read(self.onnx, name).defaults(self.metadata(name).weights)
        weights = {weight: tensor.to(self.device) for weight, tensor in defaults.items()}
        return Engine.load(self.engines, name, self.device, self.flavour, weights)

    def inputs(self, name: str, rows: int, size: tuple[int, int]) -> Tensors:
        """Noise of these shapes, on the CPU."""
        return random_inputs(input_shapes(Graph.read(self.onnx, name).inputs, rows, size), seed=rows)

    def running(self) -> RunningUNet:
        """The UNet as a service has it, and what patches it."""
        network = Checkpoint(DEMO / "weights").load_unet(self.device, torch.float16).eval()
        self.runtime.prepare(network, self.device)
        return self.runtime.unet(network, self.device, torch.float16)

    def tolerance(self, name: str) -> float:
        """Largest error that is allowed."""
        return TOLERANCES[self.metadata(name).precision]


def export(directory: Path, norms: str = "reduce") -> Path:
    """The demo family's graphs, for any batch and size."""
    export_onnx(Checkpoint(DEMO / "weights"), directory, OnnxOptions("float16", {"edges": EDGES}, norms=norms))
    return directory


def build(
    flavour: Flavour, device: torch.device, onnx: Path, engines: Path, names: tuple[str, ...], plugins: bool = True
) -> Built:
    """Engines of these names. TensorRT times kernels for every shape that it knows, and gets one size of latents."""
    height, width = DEFAULT
    sizes: tuple[tuple[int, int], ...] = (DEFAULT,)
    latents = parse_latents(f"{height}x{width}")
    if flavour.compiles_at_load:
        latents, sizes = parse_latents(f"4x4:{height}x{width}:32x32"), (DEFAULT, (8, 24))
    number = device.index or 0
    builder = EngineBuilder(
        BuildSettings(onnx, engines, parse_rows(ROWS), latents, flavour, plugins=plugins, device=number)
    )
    for name in names:
        builder.build(name)
    return Built(flavour, device, onnx, engines, sizes)


class Modules:
    """A network's modules in float32 on the CPU, called by name as its engine is."""

    def __init__(self, part: GraphPart) -> None:
        self._module, self._names, self._outputs = part.module, list(part.inputs), part.output_names

    @torch.no_grad()
    def run(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """Outputs by name."""
        given = [tensor.float() if tensor.is_floating_point() else tensor for tensor in map(inputs.get, self._names)]
        found = self._module(*given)
        return dict(zip(self._outputs, [found] if isinstance(found, torch.Tensor) else found, strict=True))


def modules() -> dict[str, Modules]:
    """What each engine is compared with."""
    sizes = Sizes(2, *DEFAULT, 4, dynamic=True)
    parts = checkpoint_parts(Checkpoint(DEMO / "weights"), torch.float32, sizes, {"edges": EDGES})
    return {part.name: Modules(part) for part in parts}


def given(rows: int, size: tuple[int, int] = DEFAULT, seed: int = 0) -> Tensors:
    """What a shard sends its UNet, on the CPU."""
    random = torch.Generator().manual_seed(100 * seed + rows)
    return {
        "LATENTS": torch.randn(rows, 4, *size, generator=random),
        "TIMESTEPS": torch.arange(rows)[:, None] * 100.0 + 7,
        "ENCODER_HIDDEN_STATES": torch.randn(rows, 77, 256, generator=random),
        "TEXT_EMBEDS": torch.randn(rows, 128, generator=random),
        "TIME_IDS": torch.full((rows, 6), 128.0),
    }


@torch.no_grad()
def step(unet: RunningUNet, tensors: Mapping[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    """A noise prediction of both halves."""
    taken = arguments(tensors, device, torch.float16)
    return unet.decoder(taken[2], *unet.encoder(*taken)).clone()


@torch.no_grad()
def exact_step(unet: torch.nn.Module, tensors: Mapping[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    """The same of modules in float32."""
    taken = arguments(tensors, device, torch.float32)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return DecoderHalf(unet)(taken[2], *EncoderHalf(unet)(*taken))


def copied(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """As they are now: the next call of an engine overwrites what it gave."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    """Whether not a bit differs."""
    return relative_error(found, wanted) == 0
