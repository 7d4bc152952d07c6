"""Which releases of TensorRT are used, and where it comes from: 10.16, and 11.4 or later."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

from packaging.version import Version

if TYPE_CHECKING:
    from types import ModuleType

INSTALL = "pip install 'tensorrt-cu13>=11.4' (NVIDIA's own package index has the libraries)"

_REFUSED = {
    (11, 3): "its release notes say that engines built with REFIT may drop the biases of matrix products",
}


class TensorRTUnavailableError(RuntimeError):
    """TensorRT or the GPU that it needs is not there, or of a release that is not used; the message says what to do."""


def check_version(release: str) -> None:
    """Lets 10.16 and 11.4 or later pass.

    Args:
        release: `tensorrt.__version__`, such as `11.4.0.106`.

    Raises:
        TensorRTUnavailableError: For every other release.
    """
    parts = release.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        raise TensorRTUnavailableError(f"TensorRT's release is {release!r}; wanted: 10.16 or at least 11.4; {INSTALL}")
    numbers = int(parts[0]), int(parts[1])
    if numbers == (10, 16) or numbers >= (11, 4):
        return
    reason = _REFUSED.get(numbers, "nothing here has been written for its interface")
    raise TensorRTUnavailableError(f"TensorRT {release}: {reason}; wanted: 10.16 or at least 11.4; {INSTALL}")


def require_tensorrt() -> ModuleType:
    """The package `tensorrt`, of a release that is used.

    Raises:
        TensorRTUnavailableError: Without it, or with another release.
    """
    try:
        tensorrt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise TensorRTUnavailableError(
            f"TensorRT is missing ({error}): {INSTALL}; a GPU of the kind that will serve is needed too"
        ) from error
    check_version(tensorrt.__version__)
    check_numpy(tensorrt.__version__, version("numpy"))
    return tensorrt


def check_numpy(release: str, numpy: str) -> None:
    """Refuses 10.16's Python plugins under a numpy that no longer makes a number of an array with one.

    Args:
        release: `tensorrt.__version__`.
        numpy: Its release.

    Raises:
        TensorRTUnavailableError: For numpy 2.4 or later.
    """
    if release.startswith("10.") and Version(numpy) >= Version("2.4"):
        raise TensorRTUnavailableError(f"TensorRT {release} fails under numpy {numpy}; wanted: numpy<2.4, or {INSTALL}")


def require_gpu(device: int = 0) -> None:
    """Checks that PyTorch sees a GPU.

    Args:
        device: Its number.

    Raises:
        TensorRTUnavailableError: If there is none of that number.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device >= count:
        raise TensorRTUnavailableError(
            f"GPU {device} is wanted, PyTorch {torch.__version__} sees {count}; "
            "engines are built and run on a GPU of the kind that will serve"
        )
