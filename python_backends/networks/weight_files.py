"""Files of a network's weights, as diffusers and transformers choose among them; their tensors' names and shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

DIFFUSERS, TRANSFORMERS = STEMS = ("diffusion_pytorch_model", "model")
"""Names of weight files."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class WeightFileError(ValueError):
    """There are no weights, not all of them, or not in safetensors files; the message says which."""


def weights_variant(directory: Path) -> str | None:
    """`fp16` where a network's weights exist only under that name (`….fp16.safetensors`), else None."""
    names = [file.name for file in directory.glob("*model*.safetensors")]  # diffusion_pytorch_model, model
    of_variant = [name for name in names if ".fp16." in name or ".fp16-" in name]
    return "fp16" if names and len(of_variant) == len(names) else None


def weight_files(directory: Path) -> list[Path]:
    """The files that diffusers or transformers reads of a network's directory: one, or the shards that an index names.

    Raises:
        WeightFileError: If there are none, or a shard is missing.
    """
    variant = f".{name}" if (name := weights_variant(directory)) else ""
    for stem in STEMS:
        whole, index = directory / f"{stem}{variant}.safetensors", directory / f"{stem}.safetensors.index{variant}.json"
        if whole.is_file() and (stem != DIFFUSERS or not index.is_file()):  # diffusers prefers the index
            return [whole]
        if index.is_file():
            return _shards(index)
    pickled = sorted(file.name for file in directory.glob("*") if file.suffix in PICKLES)
    if pickled:
        raise WeightFileError(f"{directory} holds {pickled[0]}, a pickle, which is never read; wanted: safetensors")
    raise WeightFileError(f"{directory} holds no weights ({DIFFUSERS}.safetensors or {TRANSFORMERS}.safetensors)")


def empty_tensors(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Tensors by name of the shapes that the files' headers say, without values: on the meta device.

    Their types are float32 for floating-point numbers, int64 for all others.

    Raises:
        WeightFileError: If one is no safetensors file.
    """
    return {name: tensor for file in files for name, tensor in _opened(file, values=False).items()}


def read_tensors(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Tensors by name, on the CPU.

    Raises:
        WeightFileError: If one is no safetensors file.
    """
    return {name: tensor for file in files for name, tensor in _opened(file, values=True).items()}


def difference(
    tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], computed: Collection[str] = ()
) -> str | None:
    """The first tensor that is missing, besides or of another shape; None if all are as wanted.

    Args:
        tensors: Of files.
        wanted: A network's state.
        computed: Names of values that the network computes by itself, and that may be there too.
    """
    missing = [name for name in wanted if name not in tensors]
    if missing:
        return f"it lacks {missing[0]} ({len(missing)} in all)"
    besides = [name for name in tensors if name not in wanted and name not in computed]
    if besides:
        return f"it has {besides[0]} besides ({len(besides)} in all)"
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            return f"its {name} is {_shape(tensors[name])}; wanted: {_shape(tensor)}"
        if tensor.is_floating_point() and not tensors[name].is_floating_point():
            return f"its {name} holds whole numbers, as quantised weights do; wanted: floating-point ones"
    return None


def _shape(tensor: torch.Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a scalar"


def _opened(path: Path, values: bool) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if values:
                return {name: file.get_tensor(name) for name in names}
            slices = {name: file.get_slice(name) for name in names}
            return {name: _empty(each.get_shape(), each.get_dtype()) for name, each in slices.items()}
    except (OSError, SafetensorError) as error:
        raise WeightFileError(f"{path} is no safetensors file: {error}") from error


def _empty(shape: list[int], dtype: str) -> torch.Tensor:
    """A tensor as a header describes it."""
    return torch.empty(shape, device="meta", dtype=torch.float32 if dtype.startswith(("F", "BF")) else torch.int64)


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()), key=str)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightFileError(f"{index} is no index of weights: {error!r}") from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise WeightFileError(f"{index} is no index of weights: it names {names[0]!r}; wanted: files beside it")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise WeightFileError(
            f"{index} names {missing[0]}, which is not there ({len(missing)} of {len(names)} missing)"
        )
    return [index.parent / name for name in names]
