"""Classifier-free guidance and the sampler's step as one op."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .configurations import configuration
from .kernel_source import TYPES, KernelSource
from .memory_format import dense_format
from .registration import register_op
from .step_coefficients import COLUMNS
from .triton_language import kernels_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def cfg_step(
    sample: torch.Tensor,
    conditional: torch.Tensor,
    coefficients: torch.Tensor,
    unconditional: torch.Tensor | None = None,
    previous: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One denoising step of a batch of requests, each with its own sampler, step and guidance scale.

    output = unconditional + guidance · (conditional - unconditional), then what `step_coefficients` says; every
    operation there is rounded to float32 by itself, so that the CPU gives diffusers' bits, and a GPU the CPU's.

    Limited by memory, and in practice by the launch: 16 bytes an element in float32 with a half-precision UNet's two
    outputs (20 with `previous`), against 70 or so in the dozen operators of diffusers. SDXL's 1024² latents are 64 Ki
    elements.

    Args:
        sample: Latents [B, …], float32, float16 or bfloat16; contiguous or channels-last.
        conditional: The UNet's output for the prompt, like sample but of any of these types.
        coefficients: [B, COLUMNS] float32, a row per request: `StepCoefficients.row`.
        unconditional: [G, …], the same for the negative prompts of the first G rows, 1 ≤ G ≤ B; rows after them are
            without guidance, all of them if it is None.
        previous: `denoised` of the step before, float32, for rows whose coefficients use it, and any finite numbers for
            others; None if there are only others.

    Returns:
        The next latents, like sample, and the denoised latents (x0) that this step's prediction implies, float32: what
        previews show, and the next step's `previous`.

    Raises:
        ValueError: If shapes differ, or previous or coefficients are not float32.
        MissingTritonError: For CUDA tensors without the `triton` package.
    """
    for name, tensor in (("conditional", conditional), ("previous", previous)):
        if tensor is not None and tensor.shape != sample.shape:
            raise ValueError(f"{name} is {list(tensor.shape)}; wanted: {list(sample.shape)}, as sample")
    if unconditional is not None and (
        unconditional.shape[1:] != sample.shape[1:] or not 0 < len(unconditional) <= len(sample)
    ):
        raise ValueError(f"unconditional is {list(unconditional.shape)}; wanted: rows of {list(sample.shape)}")
    if coefficients.shape != (len(sample), COLUMNS) or coefficients.dtype != torch.float32:
        given = f"{list(coefficients.shape)} {coefficients.dtype}"
        raise ValueError(f"coefficients are {given}; wanted: [B, {COLUMNS}] float32")
    if previous is not None and previous.dtype != torch.float32:
        raise ValueError(f"previous is {previous.dtype}; wanted: float32")
    return _op(sample, conditional, coefficients, unconditional, previous)


def reference(
    sample: torch.Tensor,
    conditional: torch.Tensor,
    coefficients: torch.Tensor,
    unconditional: torch.Tensor | None,
    previous: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op in PyTorch's operators, without those that change no row; arguments as of `cfg_step`."""
    guidance, a, b, c, d, e, f, g, h, i, j, k, m, n = _factors(coefficients, sample.ndim)
    latents, output = sample.float(), conditional.float()
    if unconditional is not None:
        guided, base = len(unconditional), unconditional.float()
        head = (output[:guided] - base).mul_(guidance[1][:guided]).add_(base)
        output = head if guided == len(output) else torch.cat((head, output[guided:]))
    denoised = _sum((output, a), (latents if c[0] == ONE else latents / c[1], b), over=d)
    terms = [(latents, j), (denoised, k)]
    if m[0] != ZERO:
        memory = [] if previous is None else [(previous, h)]
        direction = _sum((latents, e), (output, f), (denoised, g), *memory, over=i)
        terms.append((direction if n[0] == ONE else direction * n[1], m))
    value = _sum(*terms).to(sample.dtype)
    order = dense_format(sample)
    return (
        _apart(value.contiguous(memory_format=order), sample, denoised),
        _apart(denoised.contiguous(memory_format=order), sample, conditional),
    )


_Factor = tuple[set[float], torch.Tensor]
"""The values of a column of the coefficients, and itself, [B, 1, …]."""

ZERO, ONE, MINUS_ONE = {0.0}, {1.0}, {-1.0}


def _factors(coefficients: torch.Tensor, dimensions: int) -> Iterator[_Factor]:
    columns = coefficients.reshape(*coefficients.shape, *[1] * (dimensions - 1)).unbind(1)
    return zip(map(set, coefficients.T.tolist()), columns, strict=True)


def _sum(*terms: tuple[torch.Tensor, _Factor], over: _Factor | None = None) -> torch.Tensor:
    """Σ tensor · factor, from left to right, over a divisor; a tensor itself where that is all."""
    (first, (values, column)), *others = [term for term in terms if term[1][0] != ZERO] or terms[:1]
    total = first if values == ONE else first * column
    for tensor, (values, column) in others:
        if values == ONE:
            total = total + tensor
        elif values == MINUS_ONE:
            total = total - tensor
        else:
            total = (tensor * column).add_(total)
    if over is None or over[0] == ONE:
        return total
    return total / over[1] if total is first else total.div_(over[1])


def _apart(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """In memory of its own, as an op's results have to be."""
    return x.clone() if any(x is other for other in others) else x


def launch(
    sample: torch.Tensor,
    conditional: torch.Tensor,
    coefficients: torch.Tensor,
    unconditional: torch.Tensor | None,
    previous: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel, on a GPU or in Triton's interpreter; arguments as of `cfg_step`."""
    kernels = kernels_of("cfg_step")
    order = dense_format(sample)
    sample, conditional = sample.contiguous(memory_format=order), conditional.contiguous(memory_format=order)
    next_sample, denoised = torch.empty_like(sample), torch.empty_like(sample, dtype=torch.float32)
    if not sample.numel():
        return next_sample, denoised
    guided = 0 if unconditional is None else len(unconditional)
    unconditional = conditional if unconditional is None else unconditional.contiguous(memory_format=order)
    previous = denoised if previous is None else previous.contiguous(memory_format=order)  # any that no row reads
    size = sample.numel() // len(sample)
    settings = configuration("cfg_step", sample.device)
    with torch.cuda.device_of(sample):
        kernels.cfg_step[-(-size // settings["block"]), len(sample)](
            sample, conditional, unconditional, previous, coefficients.contiguous(), size, guided,
            next_sample, denoised,
            COLUMNS=COLUMNS, BLOCK=settings["block"], num_warps=settings["num_warps"], enable_fp_fusion=False,
        )  # fmt: skip
    return next_sample, denoised


def sources(output: torch.dtype, architecture: int) -> tuple[KernelSource, ...]:
    """What to compile ahead of time for float32 latents whose rows are multiples of 16 elements.

    Args:
        output: Type of the UNet's outputs.
        architecture: Such as 90.

    Raises:
        MissingTritonError: Without the `triton` package.
    """
    kernels = kernels_of("cfg_step")
    settings = configuration("cfg_step", architecture)
    types = dict.fromkeys(("sample", "previous", "coefficients", "next_sample", "denoised"), "*fp32")
    types |= dict.fromkeys(("conditional", "unconditional"), f"*{TYPES[output]}")
    types |= {"size": "i32", "guided": "i32"}
    constants = {"COLUMNS": COLUMNS, "BLOCK": settings["block"]}
    multiples = frozenset({"size"})
    return (KernelSource(kernels.cfg_step, types, constants, settings["num_warps"], multiples, fp_fusion=False),)


def _fake(sample: torch.Tensor, *others: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    like = torch.empty_like(sample, memory_format=dense_format(sample))
    return like, torch.empty_like(like, dtype=torch.float32)


_op = register_op("cfg_step", reference, launch, _fake)
