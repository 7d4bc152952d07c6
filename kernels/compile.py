"""Kernels compiled ahead of time, on any machine, for any architecture: PTX and what a launch needs to know.

For TensorRT's ahead-of-time plugins, which embed a kernel's PTX in the engine. Two things stand between Triton's PTX
and such a plugin:

- **Hidden parameters.** Triton appends pointers to scratch memory (`global_scratch`, `profile_scratch`) to every
  kernel, used or not. Its own launcher passes them; TensorRT passes inputs, 32-bit integers and outputs, nothing more,
  and a launch would read past its argument array. They are told apart here, and taken out where nothing uses them.
- **PTX versions.** A driver refuses PTX that is newer than itself, and Triton emits the newest that its assembler
  knows. PTX 8.7 is the oldest that has all of ARCHITECTURES, and every driver of CUDA 12.8 or later takes it.

From sm_90 on the code is for that one architecture (`sm_90a`): neither older nor newer GPUs load it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .triton_language import require_triton

if TYPE_CHECKING:
    from .kernel_source import KernelSource

ARCHITECTURES = (80, 89, 90, 100, 120)
"""Compute capabilities, ten times their number, that the tests compile for."""

PTX_VERSION = 87
"""Ten times the version of the PTX."""


class HiddenParametersUsedError(ValueError):
    """A kernel needs scratch memory that only Triton's own launcher provides."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a compiled kernel.

    Attributes:
        name: Of the Triton function's parameter; of the PTX's for a hidden one.
        type: Triton's name of its type, such as `*fp16` or `i32`; PTX's for a hidden one.
    """

    name: str
    type: str


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel for one architecture.

    Attributes:
        name: Of the entry point.
        architecture: Such as 90.
        ptx: With all parameters.
        cubin: The same assembled, with all parameters.
        shared_memory: Bytes of dynamic shared memory of a launch.
        num_warps: Warps of a block.
        parameters: Those that a caller passes, in order.
        hidden_parameters: Those that Triton appended, in order.
    """

    name: str
    architecture: int
    ptx: str
    cubin: bytes
    shared_memory: int
    num_warps: int
    parameters: tuple[Parameter, ...]
    hidden_parameters: tuple[Parameter, ...]

    @property
    def threads(self) -> int:
        """Threads of a block, along x."""
        return 32 * self.num_warps

    @property
    def plain_ptx(self) -> str:
        """The PTX with only the parameters that a caller passes.

        Raises:
            HiddenParametersUsedError: If the kernel reads a hidden one.
        """
        head, parameters, body = _split(self.ptx, self.name)
        used = [hidden.name for hidden in self.hidden_parameters if re.search(rf"\b{hidden.name}\b", body)]
        if used:
            raise HiddenParametersUsedError(f"{self.name} reads the hidden parameters {', '.join(used)}")
        return head + "\n" + ",\n".join(parameters[: len(self.parameters)]) + "\n" + body


def compile_kernel(source: KernelSource, architecture: int, ptx_version: int = PTX_VERSION) -> CompiledKernel:
    """Compiles a kernel; needs no GPU.

    Args:
        source: The kernel and what specialises it.
        architecture: Compute capability, ten times its number.
        ptx_version: Ten times the version of the PTX.

    Raises:
        MissingTritonError: Without the `triton` package.
        RuntimeError: In Triton's interpreter mode, which has no compiler.
        ValueError: If `types` and `constants` are not the kernel's parameters.
    """
    require_triton("compile")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(source.function, triton.runtime.jit.JITFunction):
        raise RuntimeError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled")
    names = source.function.arg_names
    if sorted(names) != sorted([*source.types, *source.constants]):
        raise ValueError(f"{source.function.__name__} takes {names}; given: {[*source.types, *source.constants]}")
    pointers = {name for name, of in source.types.items() if of.startswith("*")}
    compiled = triton.compile(
        ASTSource(
            fn=source.function,
            signature={name: source.types.get(name, "constexpr") for name in names},
            constexprs=dict(source.constants),
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in pointers | source.multiples_of_16},
        ),
        target=GPUTarget("cuda", architecture, 32),
        options={
            "num_warps": source.num_warps,
            "ptx_version": ptx_version,
            "enable_fp_fusion": source.fp_fusion,
        },
    )
    ptx, name = compiled.asm["ptx"], compiled.metadata.name
    visible = tuple(Parameter(name, source.types[name]) for name in names if name in source.types)
    lines = _split(ptx, name)[1]
    return CompiledKernel(
        name=name,
        architecture=architecture,
        ptx=ptx,
        cubin=compiled.asm["cubin"],
        shared_memory=compiled.metadata.shared,
        num_warps=compiled.metadata.num_warps,
        parameters=visible,
        hidden_parameters=tuple(_parameter(line) for line in lines[len(visible) :]),
    )


def _split(ptx: str, name: str) -> tuple[str, list[str], str]:
    """PTX up to the entry's parameter list, the parameters' lines without commas, and the rest."""
    entry = f".entry {name}("
    before, found, after = ptx.partition(entry)
    parameters, closing, body = after.partition("\n)")
    if not (found and closing):
        raise ValueError(f"no entry {name} in the PTX")
    return (
        before + entry,
        [line.rstrip(",") for line in parameters.strip("\n").split("\n")],
        closing.lstrip("\n") + body,
    )


def _parameter(line: str) -> Parameter:
    kind = re.search(r"\.param\s+\.(\w+)", line)
    return Parameter(line.split()[-1], kind[1] if kind else "")
