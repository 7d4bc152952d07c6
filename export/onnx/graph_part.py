"""What becomes one graph: a module, its named inputs and outputs, and how their sizes hang together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]
MANY_ROWS = 64
"""From so many on, diffusers' upsampling makes its input contiguous, which changes no value: a graph that is traced on
either side takes any number of rows. torch.export is told the side; else it finds out by failing, and starts again."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that a graph is traced with, and whether others are allowed.

    Attributes:
        rows: Batch.
        height: Of the latents, in cells.
        width: Of the latents, in cells.
        stride: Heights and widths are multiples of it.
        dynamic: Whether the graph takes any batch and any such height and width; else these alone.
    """

    rows: int
    height: int
    width: int
    stride: int
    dynamic: bool

    def names(self, shape: Shape) -> tuple[int | str, ...]:
        """A tensor's shape in words: `rows` for the batch, and `height`, `height/2`, `8*height` … of the latents."""
        if not self.dynamic:
            return shape
        named: list[int | str] = ["rows", *shape[1:]]
        if len(shape) == 4:
            for axis, name, latent in ((2, "height", self.height), (3, "width", self.width)):
                larger, smaller = shape[axis] // latent, latent // shape[axis]
                named[axis] = f"{name}/{smaller}" if smaller > 1 else f"{larger}*{name}" if larger > 1 else name
        return tuple(named)


@dataclass(frozen=True)
class GraphPart:
    """A module that becomes a graph.

    Attributes:
        name: Of the file, without suffix.
        component: What the weights are of: `unet`, `text_encoder`, `text_encoder_2`, `vae`, or a ControlNet's name.
        module: Takes the inputs positionally; [B, …], four-dimensional ones [B, C, h, w].
        network: Part of the module: parameters are named as in its state dict.
        inputs: Name → example.
        output_names: Their names.
        sizes: Of the examples.
        digest: `networks.digests.weights_digest` of the network as it was loaded.
        outputs: Name → shape for these examples.
    """

    name: str
    component: str
    module: torch.nn.Module
    network: torch.nn.Module
    inputs: Mapping[str, torch.Tensor]
    output_names: Sequence[str]
    sizes: Sizes
    digest: str
    outputs: Mapping[str, Shape] = field(init=False)

    def __post_init__(self) -> None:
        shapes = output_shapes(self.module, self.inputs)
        object.__setattr__(self, "outputs", dict(zip(self.output_names, shapes, strict=True)))

    @property
    def dynamic_shapes(self) -> tuple[tuple[dict[int, Any], ...]] | None:
        """The same for `torch.export`, for a module whose inputs are all in `*tensors`; None for fixed shapes."""
        if not self.sizes.dynamic:
            return None
        many = self.sizes.rows >= MANY_ROWS
        rows = torch.export.Dim("rows", min=MANY_ROWS) if many else torch.export.Dim("rows", max=MANY_ROWS - 1)
        height, width = torch.export.Dim("height_unit"), torch.export.Dim("width_unit")
        unit_height, unit_width = self.sizes.height // self.sizes.stride, self.sizes.width // self.sizes.stride

        def axes(shape: Shape) -> dict[int, Any]:
            if len(shape) != 4:
                return {0: rows}
            return {0: rows, 2: _times(shape[2] // unit_height, height), 3: _times(shape[3] // unit_width, width)}

        return (tuple(axes(tuple(tensor.shape)) for tensor in self.inputs.values()),)


def output_shapes(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> list[Shape]:
    """Shapes of what a module gives for inputs of these shapes; nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        outputs = module(
            *(tensor if mode.is_our_fake(tensor) else mode.from_tensor(tensor) for tensor in inputs.values())
        )
    return [tuple(tensor.shape) for tensor in ((outputs,) if isinstance(outputs, torch.Tensor) else outputs)]


def _times(factor: int, unit: Any) -> Any:
    return unit if factor == 1 else factor * unit
