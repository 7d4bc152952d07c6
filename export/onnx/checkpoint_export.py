"""A checkpoint → a directory of ONNX graphs, their weights and `export.json`."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
import torch
from rich.console import Console
from rich.progress import Progress

from ...python_backends.lora.files.modules import UNET, adaptable_weights
from ...python_backends.tensorrt.tensor_names import DECODER
from .checkpoint_parts import checkpoint_parts, part_names
from .errors import LostWeightError, OnnxExportError
from .function_bodies import NORM_FORMS, REDUCE
from .fused_nodes import DOMAIN, OPSET
from .graph_part import Sizes
from .sources import DESCRIPTION, source_digests
from .torch_graph import torch_graph

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ...python_backends.networks.checkpoint import Checkpoint
    from .graph_part import GraphPart

DTYPES = ("float32", "float16")
PACKAGES = ("torch", "onnx", "onnxscript", "diffusers", "transformers")
"""Whose versions are written down: what the graphs look like depends on them."""


@dataclass(frozen=True)
class OnnxOptions:
    """How a checkpoint is exported.

    Attributes:
        dtype: Of weights, inputs and outputs: `float32` or `float16`. Timesteps and SDXL's sizes are float32; so is a
            VAE that overflows in float16, and so are its pictures.
        controlnets: Name → directory or file of a ControlNet.
        height: Of the pictures, in pixels; None: the checkpoint's default.
        width: As height.
        rows: Batch.
        dynamic: Whether the graphs take any batch and size; those above are then just what they are traced with.
        norms: What norms' nodes mean, of `function_bodies.NORM_FORMS`.
    """

    dtype: str = "float16"
    controlnets: Mapping[str, Path] = field(default_factory=dict)
    height: int | None = None
    width: int | None = None
    rows: int = 2
    dynamic: bool = True
    norms: str = REDUCE

    def sizes(self, checkpoint: Checkpoint) -> Sizes:
        """The latents' sizes.

        Raises:
            OnnxExportError: If they are not the checkpoint's.
        """
        height, width = checkpoint.default_size
        asked = {"height": self.height or height, "width": self.width or width}
        multiple, factor = checkpoint.even_size_multiple, checkpoint.vae_scale_factor
        for name, side in asked.items():
            if side < 1 or side % multiple:
                raise OnnxExportError(f"--{name} is {side}; allowed: multiples of {multiple}")
            if self.dynamic and side == multiple:
                raise OnnxExportError(f"--{name} is {side}; wanted without --fixed: at least {2 * multiple}")
        least = 2 if self.dynamic else 1
        if self.rows < least:
            raise OnnxExportError(f"--rows is {self.rows}; wanted: at least {least}{' without --fixed' * self.dynamic}")
        return Sizes(self.rows, asked["height"] // factor, asked["width"] // factor, multiple // factor, self.dynamic)


def export_onnx(checkpoint: Checkpoint, directory: Path, options: OnnxOptions) -> list[str]:
    """Writes every graph as `NAME.onnx` and `NAME.onnx.data`, and `export.json` beside them.

    Nothing is left behind by an export that fails.

    Args:
        checkpoint: The checkpoint.
        directory: New or empty.
        options: See there.

    Returns:
        Names of the graphs.

    Raises:
        OnnxExportError: If an option is not allowed, or the directory is not empty.
        UnexportableError: If a network has no graph of this kind.
        ControlNetFileError: If a ControlNet does not fit.
        LostWeightError: If a graph computes with a weight that it does not name.
    """
    if options.dtype not in DTYPES:
        raise OnnxExportError(f"--dtype is {options.dtype}; allowed: {', '.join(DTYPES)}")
    if options.norms not in NORM_FORMS:
        raise OnnxExportError(f"--norms is {options.norms}; allowed: {', '.join(NORM_FORMS)}")
    sizes = options.sizes(checkpoint)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise OnnxExportError(f"--output {directory} is not empty; wanted: a new or empty directory")
    names = part_names(checkpoint, options.controlnets)
    parts = checkpoint_parts(checkpoint, getattr(torch, options.dtype), sizes, options.controlnets)
    directory.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    graphs = {}
    with tempfile.TemporaryDirectory(prefix=".export-", dir=directory) as temporary:
        for name, part in zip(_shown(names), parts, strict=True):
            model = torch_graph(part, options.norms)
            graphs[name] = _write(Path(temporary) / name, part, model)
            if part.component == UNET:
                taken |= {str(value.name).removesuffix(".weight") for value in model.graph.inputs}
            if name == DECODER and (lost := adaptable_weights(part.network).keys() - taken):
                raise LostWeightError(f"neither half of the UNet computes with {min(lost)}; wanted: one that does")
        description = _description(checkpoint, options, sizes) | {"graphs": graphs}
        (Path(temporary) / DESCRIPTION).write_text(json.dumps(description, indent=1), "utf-8")
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == DESCRIPTION):
            file.rename(directory / file.name)
    return names


def _shown(names: list[str]) -> Iterator[str]:
    """The names, each shown while its graph is made."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name)
            yield name
            progress.advance(task)


def _write(path: Path, part: GraphPart, model: ir.Model) -> dict[str, Any]:
    """Writes a graph and its weights, and checks what was written."""
    file = path.with_name(f"{path.name}.onnx")
    ir.save(model, file, external_data=f"{file.name}.data")
    onnx.checker.check_model(str(file), full_check=True)
    return {
        "file": file.name,
        "component": part.component,
        "inputs": [_described(value) for value in model.graph.inputs[: len(part.inputs)]],
        "weights": [_described(value) for value in model.graph.inputs[len(part.inputs) :]],
        "outputs": [_described(value) for value in model.graph.outputs],
        "fused_nodes": dict(Counter(node.op_type for node in model.graph if node.domain == DOMAIN)),
    }


def _described(value: ir.Value) -> dict[str, Any]:
    assert value.dtype is not None and value.shape is not None
    shape = [axis if isinstance(axis, int) else axis.value for axis in value.shape]
    return {"name": value.name, "dtype": value.dtype.numpy().name, "shape": shape}


def _description(checkpoint: Checkpoint, options: OnnxOptions, sizes: Sizes) -> dict[str, Any]:
    return {
        "family": checkpoint.family,
        "dtype": options.dtype,
        "dynamic": options.dynamic,
        "rows": sizes.rows,
        "height": sizes.height * checkpoint.vae_scale_factor,
        "width": sizes.width * checkpoint.vae_scale_factor,
        "size_multiple": checkpoint.even_size_multiple,
        "vae_scale_factor": checkpoint.vae_scale_factor,
        "opset": OPSET,
        "norms": options.norms,
        "versions": {package: version(package) for package in PACKAGES},
        "sha256": source_digests(checkpoint, options.controlnets),
    }
