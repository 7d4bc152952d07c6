"""The kernels behind the plugins: what to compile for a node, and how to launch it. Knows nothing of TensorRT.

A plugin of TensorRT is one kernel, so a GroupNorm of any size runs the single-launch kernel, which the eager operator
takes for small pictures only. Where a picture is large, that leaves most of the GPU idle in these nodes (SDXL's first
level: one program per ten to twelve groups and image). An engine without plugins does not have that, and TensorRT
fuses around its own operators; `verify-engines` times both.

A kernel is compiled once per node, layout and tactic, and serves every shape of the engine's profiles. So only what is
the same in all of them may specialise it: channels always; pixels where the network's input has a fixed size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from ...kernels import geglu, group_norm_silu
from ...kernels.compile import compile_kernel
from ...kernels.configurations import CANDIDATES, configuration

if TYPE_CHECKING:
    import torch

    from ...kernels.compile import CompiledKernel
    from ...kernels.kernel_source import KernelSource


def tactics(op: str, architecture: int) -> tuple[dict[str, int], ...]:
    """Settings among which TensorRT chooses by timing; tactic n is the one at n - 1.

    Args:
        op: `group_norm_silu` or `geglu`.
        architecture: Such as 90.
    """
    own = configuration(op, architecture)
    return own, *(other for other in ({**own, **candidate} for candidate in CANDIDATES[op]) if other != own)


@dataclass(frozen=True)
class GroupNormNode:
    """What specialises the kernel of a norm's node.

    Attributes:
        channels: C.
        pixels: h · w; of the largest picture, if sizes vary.
        pixels_vary: Whether they do.
        groups: Divides C.
        eps: Added to the variance.
        silu: Whether SiLU follows.
        embedding: Whether one is added to x before.
        dtype: Of every tensor.
        channels_last: Layout of x and y.
    """

    channels: int
    pixels: int
    pixels_vary: bool
    groups: int
    eps: float
    silu: bool
    embedding: bool
    dtype: torch.dtype
    channels_last: bool

    def source(self, architecture: int, tactic: int) -> KernelSource:
        """What to compile.

        Raises:
            ValueError: If groups do not divide the channels.
        """
        if self.groups < 1 or self.channels % self.groups:
            raise ValueError(f"{self.channels} channels in {self.groups} groups; wanted: groups that divide them")
        unsplit = {"one_program_bytes": 2**63}  # pixels never go to several programs: that would be a second kernel
        settings = {**tactics("group_norm_silu", architecture)[tactic - 1], **unsplit}
        shape = (1, self.channels, self.pixels)
        after = self.channels_last, self.eps, self.silu, self.embedding
        (source,) = group_norm_silu.sources(shape, self.groups, self.dtype, architecture, *after, settings)
        varying = {"pixels"} if self.pixels_vary else set()
        return replace(source, multiples_of_16=source.multiples_of_16 - varying)

    def blocks(self, architecture: int, tactic: int) -> int:
        """Programs along the grid's x; along y it is the batch."""
        return -(-self.groups // self.source(architecture, tactic).constants["GROUPS"])


@dataclass(frozen=True)
class GegluNode:
    """What specialises the kernel of a `GEGLU` node.

    Attributes:
        width: D, of the output.
        dtype: Of both tensors.
    """

    width: int
    dtype: torch.dtype

    def source(self, architecture: int, tactic: int) -> KernelSource:
        """What to compile."""
        settings = tactics("geglu", architecture)[tactic - 1]
        (source,) = geglu.sources(self.width, self.dtype, architecture, settings=settings)
        return source

    def block_rows(self, architecture: int, tactic: int) -> int:
        """Rows of a program; programs of rows are along the grid's x."""
        return int(self.source(architecture, tactic).constants["ROWS"])

    def blocks(self, architecture: int, tactic: int) -> int:
        """Programs along the grid's y."""
        return -(-self.width // self.source(architecture, tactic).constants["COLUMNS"])


@cache
def compiled(node: GroupNormNode | GegluNode, architecture: int, tactic: int) -> CompiledKernel:
    """A node's kernel; equal nodes share it."""
    return compile_kernel(node.source(architecture, tactic), architecture)
