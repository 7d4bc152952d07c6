"""Textual inversion embeddings: files that lie among the LoRAs, of vectors that a prompt calls by the file's name."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ...common.errors import InvalidRequestError
from .modules import TEXT_ENCODER, TEXT_ENCODER_2
from .safetensors_file import FileLimits, read_lora_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

OF_ENCODERS = {TEXT_ENCODER: "clip_l", TEXT_ENCODER_2: "clip_g"}
"""SDXL's names of the vectors for each text encoder."""

MOST_VECTORS = 75
"""More would not fit into a prompt."""

MOST_BYTES = 2 * 2**20
"""Larger files are none, and not opened: so many vectors for SDXL's encoders are 0.6 MB in float32."""


def vectors_in(shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Text encoder → the tensor of its vectors, of a file with tensors of these names and shapes; empty if it is none.

    SDXL's have names of their own. All others hold one tensor, called `emb_params` or as its token is, where a LoRA's
    tensors have a module's and a role's name.
    """
    if any(len(shape) not in (1, 2) for shape in shapes.values()):
        return {}
    named = {encoder: name for encoder, name in OF_ENCODERS.items() if name in shapes}
    if len(named) == len(shapes):
        return named
    name = next(iter(shapes))
    return {TEXT_ENCODER: name} if len(shapes) == 1 and "." not in name else {}


def holds_textual_inversion(path: Path) -> bool:
    """Whether a file is one, by its length and header; False for one that cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            return False
        with safe_open(path, "pt") as file:
            return bool(vectors_in({name: file.get_slice(name).get_shape() for name in file.keys()}))  # noqa: SIM118  not a dict
    except (SafetensorError, OSError):
        return False


def read_vectors(path: Path, widths: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """A file's vectors [vectors, width] for each text encoder.

    Args:
        path: Of the file.
        widths: Of the embeddings of each text encoder.

    Raises:
        InvalidRequestError: If it is not for these text encoders; the sentence says why.
        OSError: If it cannot be read.
    """
    tensors = read_lora_file(path, FileLimits(file_bytes=MOST_BYTES)).tensors
    found = vectors_in({name: tensor.shape for name, tensor in tensors.items()})
    if found.keys() != widths.keys():
        wanted = "one tensor" if len(widths) == 1 else " and ".join(OF_ENCODERS[encoder] for encoder in widths)
        raise InvalidRequestError(f"it holds {', '.join(sorted(tensors))}; wanted: {wanted}")
    shapes = {encoder: (1, *tensors[name].shape)[-2:] for encoder, name in found.items()}
    for encoder, (_, width) in shapes.items():
        if width != widths[encoder]:
            raise InvalidRequestError(f"its vectors have {width} values; {encoder} takes {widths[encoder]}")
    counts = {count for count, _ in shapes.values()}
    if len(counts) > 1 or not 1 <= max(counts) <= MOST_VECTORS:
        shown = " and ".join(map(str, sorted(counts)))
        raise InvalidRequestError(f"it holds {shown} vectors; wanted: 1 to {MOST_VECTORS}, as many for each encoder")
    return {encoder: tensors[name].reshape(shapes[encoder]) for encoder, name in found.items()}
