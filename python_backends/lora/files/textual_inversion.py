"""Textual inversion embeddings: files that lie among the LoRAs, of vectors that a prompt calls by the file's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ...common.errors import InvalidRequestError
from .modules import TEXT_ENCODER, TEXT_ENCODER_2
from .safetensors_file import read_lora_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

OF_ENCODERS = {TEXT_ENCODER: "clip_l", TEXT_ENCODER_2: "clip_g"}
"""SDXL's names of the vectors for each text encoder."""

MOST_VECTORS = 75
"""More would not fit into a prompt."""


def is_textual_inversion(shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether a file with tensors of these names and shapes is one.

    SDXL's have names of their own. All others hold one tensor, called `emb_params` or as its token is, where a LoRA's
    tensors have a module's and a role's name.
    """
    if not shapes or any(len(shape) not in (1, 2) for shape in shapes.values()):
        return False
    alone = len(shapes) == 1 and not any("." in name for name in shapes)
    return alone or shapes.keys() <= set(OF_ENCODERS.values())


def holds_textual_inversion(path: Path) -> bool:
    """Whether a file is one, by its header."""
    try:
        with safe_open(path, "pt") as file:
            return is_textual_inversion({name: file.get_slice(name).get_shape() for name in file.keys()})  # noqa: SIM118  not a dict
    except (SafetensorError, OSError):
        return False


def read_vectors(path: Path, widths: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """A file's vectors [vectors, width] for each text encoder.

    Args:
        path: Of the file.
        widths: Of the embeddings of each text encoder.

    Raises:
        InvalidRequestError: If it is not for these text encoders; the sentence says why.
    """
    tensors = read_lora_file(path).tensors
    if len(widths) == 1 and len(tensors) == 1:
        (tensor,) = tensors.values()
        found = dict.fromkeys(widths, tensor)
    elif tensors.keys() == {OF_ENCODERS[encoder] for encoder in widths}:
        found = {encoder: tensors[OF_ENCODERS[encoder]] for encoder in widths}
    else:
        wanted = "one tensor" if len(widths) == 1 else " and ".join(OF_ENCODERS[encoder] for encoder in widths)
        raise InvalidRequestError(f"it holds {', '.join(sorted(tensors))}; wanted: {wanted}")
    vectors = {encoder: tensor.reshape(-1, tensor.shape[-1]) for encoder, tensor in found.items()}
    for encoder, tensor in vectors.items():
        if tensor.shape[1] != widths[encoder]:
            raise InvalidRequestError(f"its vectors have {tensor.shape[1]} values; {encoder} takes {widths[encoder]}")
    counts = {len(tensor) for tensor in vectors.values()}
    if len(counts) > 1 or not 1 <= max(counts) <= MOST_VECTORS:
        shown = " and ".join(map(str, sorted(counts)))
        raise InvalidRequestError(f"it holds {shown} vectors; wanted: 1 to {MOST_VECTORS}, as many for each encoder")
    return vectors
