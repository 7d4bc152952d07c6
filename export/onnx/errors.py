"""Why there is no graph. Needs none of the packages that make them."""

from __future__ import annotations

from importlib.util import find_spec

PACKAGES = ("onnx", "onnxscript")


class OnnxExportError(ValueError):
    """What was asked for cannot be exported; the message names the option, what was given and what is wanted."""


class UnexportableError(OnnxExportError):
    """A network that has no graph of this kind; the message says why."""


class LostWeightError(OnnxExportError):
    """A weight that LoRAs adapt is no input of the graph that computes with it; the message says which."""


def require_onnx(what: str) -> None:
    """Checks that the packages are there.

    Args:
        what: Needs them, for the message.

    Raises:
        OnnxExportError: If one is not, with how to install it.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise OnnxExportError(f"{what} needs {' and '.join(missing)}: pip install 'swiftdiffusion[onnx]'")
