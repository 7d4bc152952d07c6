"""The weights that graphs were made of. Needs none of the packages that make them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ...python_backends.common.filesystem import sha256_of
from .errors import OnnxExportError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ...python_backends.networks.checkpoint import Checkpoint

DESCRIPTION = "export.json"
"""File of an export that says what it was made of, and how."""


def source_digests(checkpoint: Checkpoint, controlnets: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of the files with the weights of a checkpoint and of ControlNets, by the networks' names and theirs."""
    found = {f"{part}/{file.name}": file for part in checkpoint.networks for file in checkpoint.weight_files(part)}
    for name, path in controlnets.items():
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        found |= {f"controlnet_{name}/{file.name}": file for file in files}
    return {name: sha256_of(file) for name, file in found.items()}


def check_export(directory: Path, checkpoint: Checkpoint, controlnets: Mapping[str, Path], dtype: str) -> bool:
    """Whether there is an export in a directory.

    Args:
        directory: Where it would be.
        checkpoint: What it is to be made of.
        controlnets: With which ControlNets, at least.
        dtype: Of its weights.

    Raises:
        OnnxExportError: If there is one of something else.
    """
    try:
        said = json.loads((directory / DESCRIPTION).read_bytes())
        written, known = said["dtype"], dict(said["sha256"])
    except FileNotFoundError:
        return False
    except (ValueError, TypeError, KeyError) as error:
        raise OnnxExportError(
            f"{directory / DESCRIPTION} is not what export-onnx writes: {error!r}; {_AGAIN}"
        ) from None
    wanted = source_digests(checkpoint, controlnets)
    others = sorted(name for name, digest in wanted.items() if known.get(name) != digest)
    if others or written != dtype:
        reason = f"{others[0]} is another one" if others else f"it is of {written}"
        raise OnnxExportError(f"{directory} is not of {checkpoint.path} as {dtype}: {reason}; {_AGAIN}")
    return True


_AGAIN = "remove it and the engines that were built of it, or name another directory"
