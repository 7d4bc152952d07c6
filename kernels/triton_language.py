"""The one door to the Triton language: nothing else in the package imports it before it is needed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


class MissingTritonError(ImportError):
    """A kernel is wanted where the `triton` package is not installed."""


def require_triton(purpose: str) -> None:
    """Checks that the Triton language is there.

    Args:
        purpose: What needs it.

    Raises:
        MissingTritonError: Without the `triton` package; says what to install.
    """
    try:
        importlib.import_module("triton")
    except ModuleNotFoundError as error:
        raise MissingTritonError(
            f"{purpose} needs the Triton language: pip install 'swiftdiffusion[kernels]', or triton>=3.6 itself"
        ) from error


def kernels_of(op: str) -> ModuleType:
    """The module `triton_kernels.<op>`.

    Args:
        op: Name without namespace.

    Raises:
        MissingTritonError: Without the `triton` package.
    """
    require_triton(f"swiftdiffusion::{op} on a GPU")
    return importlib.import_module(f"{__package__}.triton_kernels.{op}")
