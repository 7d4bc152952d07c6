"""An operator's registration with PyTorch: one signature for what the CPU computes and what a GPU launches."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

NAMESPACE = "swiftdiffusion"


def register_op(
    name: str,
    reference: Callable[..., Any],
    launch: Callable[..., Any],
    fake: Callable[..., Any],
    mutates: tuple[str, ...] = (),
) -> torch._ops.OpOverload:
    """An op of `torch.library`, whose schema is the signature of its reference.

    (Not `torch.library.custom_op`: that puts Python code around each call, and imports torch.compile's front end.)

    (TensorRT's plugins describe themselves: they have attributes beside tensors, an operator more for an absent tensor,
    and annotations that are TensorRT's own types.)

    Args:
        name: Without the namespace.
        reference: The op in PyTorch's operators, for the CPU.
        launch: The kernels, for CUDA, with the same signature.
        fake: Shapes, types and memory formats of the results.
        mutates: Names of the arguments that it changes in place.

    Raises:
        TypeError: If reference and launch have different signatures.
    """
    wanted, given = inspect.signature(reference), inspect.signature(launch)
    if wanted != given:
        raise TypeError(f"{name}: the reference is {wanted}, the launcher {given}; wanted: one signature")
    op, library = f"{NAMESPACE}::{name}", torch.library
    library.define(op, library.infer_schema(reference, mutates_args=mutates), tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(op, "cpu", reference)
    library.impl(op, "cuda", launch)
    library.register_fake(op, fake)
    return getattr(getattr(torch.ops, NAMESPACE), name).default
