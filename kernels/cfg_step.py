"""Classifier-free guidance and the sampler's step as one op."""

from __future__ import annotations

import torch

from .configurations import configuration
from .kernel_source import TYPES, KernelSource
from .memory_format import dense_format
from .registration import register_op
from .step_coefficients import GUIDANCE, OF_OUTPUT, OF_PREVIOUS, OF_SAMPLE, X0_OF_OUTPUT, X0_OF_SAMPLE
from .triton_language import kernels_of


def cfg_step(
    sample: torch.Tensor,
    conditional: torch.Tensor,
    coefficients: torch.Tensor,
    unconditional: torch.Tensor | None = None,
    previous: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One denoising step of a batch of requests, each with its own sampler, step and guidance scale.

    output = unconditional + guidance · (conditional - unconditional); then both results are affine in sample, output
    and previous. Float32 throughout; diffusers' pipelines combine the two halves in the UNet's precision.

    Limited by memory, and in practice by the launch: 16 bytes an element in float32 with a half-precision UNet's two
    outputs (20 with `previous`), against 70 or so in the dozen operators of diffusers. SDXL's 1024² latents are 64 Ki
    elements.

    Args:
        sample: Latents [B, …], float32, float16 or bfloat16; contiguous or channels-last.
        conditional: The UNet's output for the prompt, like sample but of any of these types.
        coefficients: [B, 6] float32, a row per request: `StepCoefficients.row`.
        unconditional: The same for the negative prompt; None without guidance.
        previous: `denoised` of the step before, float32, for samplers that use it; None for others.

    Returns:
        The next latents, like sample, and the denoised latents (x0) that this step's prediction implies, float32: what
        previews show, and the next step's `previous`.

    Raises:
        ValueError: If shapes differ, or previous or coefficients are not float32.
        MissingTritonError: For CUDA tensors without the `triton` package.
    """
    for name, tensor in (("conditional", conditional), ("unconditional", unconditional), ("previous", previous)):
        if tensor is not None and tensor.shape != sample.shape:
            raise ValueError(f"{name} is {list(tensor.shape)}; wanted: {list(sample.shape)}, as sample")
    if coefficients.shape != (len(sample), 6) or coefficients.dtype != torch.float32:
        raise ValueError(f"coefficients are {list(coefficients.shape)} {coefficients.dtype}; wanted: [B, 6] float32")
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
    """The op in PyTorch's operators; arguments as of `cfg_step`."""
    columns = coefficients.reshape(len(sample), 6, *[1] * (sample.ndim - 1)).unbind(1)
    latents, output = sample.float(), conditional.float()
    if unconditional is not None:
        base = unconditional.float()
        output = base + columns[GUIDANCE] * (output - base)
    value = columns[OF_SAMPLE] * latents + columns[OF_OUTPUT] * output
    if previous is not None:
        value = value + columns[OF_PREVIOUS] * previous
    denoised = columns[X0_OF_SAMPLE] * latents + columns[X0_OF_OUTPUT] * output
    order = dense_format(sample)
    return value.to(sample.dtype).contiguous(memory_format=order), denoised.contiguous(memory_format=order)


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
    unconditional = None if unconditional is None else unconditional.contiguous(memory_format=order)
    previous = None if previous is None else previous.contiguous(memory_format=order)
    next_sample, denoised = torch.empty_like(sample), torch.empty_like(sample, dtype=torch.float32)
    if not sample.numel():
        return next_sample, denoised
    size = sample.numel() // len(sample)
    settings = configuration("cfg_step", sample.device)
    with torch.cuda.device_of(sample):
        kernels.cfg_step[-(-size // settings["block"]), len(sample)](
            sample, conditional, unconditional, previous, coefficients.contiguous(), size, next_sample, denoised,
            BLOCK=settings["block"], num_warps=settings["num_warps"],
        )  # fmt: skip
    return next_sample, denoised


def sources(
    output: torch.dtype, architecture: int, guided: bool = True, previous: bool = False
) -> tuple[KernelSource, ...]:
    """What to compile ahead of time for float32 latents whose rows are multiples of 16 elements.

    Args:
        output: Type of the UNet's outputs.
        architecture: Such as 90.
        guided: Whether there is an unconditional half.
        previous: Whether the sampler uses the step before.

    Raises:
        MissingTritonError: Without the `triton` package.
    """
    kernels = kernels_of("cfg_step")
    settings = configuration("cfg_step", architecture)
    types = dict.fromkeys(("sample", "coefficients", "next_sample", "denoised"), "*fp32")
    types |= {"conditional": f"*{TYPES[output]}", "size": "i32"}
    constants: dict[str, int | None] = {"BLOCK": settings["block"]}
    for name, wanted, of in (("unconditional", guided, f"*{TYPES[output]}"), ("previous", previous, "*fp32")):
        if wanted:
            types[name] = of
        else:
            constants[name] = None
    return (KernelSource(kernels.cfg_step, types, constants, settings["num_warps"], frozenset({"size"})),)


def _fake(sample: torch.Tensor, *others: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    like = torch.empty_like(sample, memory_format=dense_format(sample))
    return like, torch.empty_like(like, dtype=torch.float32)


_op = register_op("cfg_step", reference, launch, _fake)
