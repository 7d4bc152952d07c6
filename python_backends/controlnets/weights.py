"""A ControlNet's files: a diffusers directory, or a single safetensors file as their trainers publish them."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..common.sentences import in_a_sentence
from ..networks.weight_files import WeightFileError, difference, empty_tensors, read_tensors, weight_files
from .file_kinds import foreign_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from diffusers import ControlNetModel, ControlNetUnionModel

    from ..networks.checkpoint import Checkpoint

    Tensors = Mapping[str, torch.Tensor]

PLAIN, UNION = "ControlNetModel", "ControlNetUnionModel"
SERVED = {PLAIN: PLAIN, UNION: UNION, "ControlNetModel_Union": UNION}
"""Class in a directory's config → the class of diffusers that it means."""

EMBEDDING = "conditioning_embedding_out_channels"
DIFFERENCE = "difference"
"""A tensor that marks a file whose weights are differences to a UNet's, where the UNet has them too."""

CONVERTED, UNION_WEIGHT = "time_embedding.linear_1.weight", "task_embedding"
"""Tensors that only files in diffusers' naming have, and that only unions have."""


class ControlNetFileError(ValueError):
    """What the path holds is no ControlNet that can be served; the message says why."""


@dataclass(frozen=True)
class ControlNetFiles:
    """Files that hold a ControlNet, whole, and nothing besides.

    Attributes:
        path: Directory or file.
        checkpoint: Whose UNet it steers.
        config: Of diffusers' class, `_class_name` included.
        judge: What says which weights there should be.
        to_base: Whether its weights are differences to the checkpoint's UNet.
    """

    path: Path
    checkpoint: Checkpoint
    config: dict[str, Any]
    judge: str
    to_base: bool

    @classmethod
    def look(cls, path: Path, checkpoint: Checkpoint) -> ControlNetFiles:
        """Looks at config and headers; a single file is taken to have the settings of the checkpoint's UNet.

        Args:
            path: Directory or file.
            checkpoint: Whose UNet it steers.

        Raises:
            ControlNetFileError: If there is no ControlNet, or not all of it, or something besides.
        """
        with in_a_sentence(f"{path} cannot be read as a ControlNet", ControlNetFileError):
            tensors = _of_files(path, empty_tensors)
            if path.is_file():
                _refuse_other_kinds(path, tensors)
                config, judge = _config_of_tensors(path, tensors, checkpoint), f"the UNet of {checkpoint.path}"
            else:
                config, judge = _config_of_directory(path), "its config.json"
            files = cls(path, checkpoint, config, judge, DIFFERENCE in tensors)
            files._check(files._named(tensors), files.empty())
            return files

    def load(self, dtype: torch.dtype) -> ControlNetModel | ControlNetUnionModel:
        """The network on the CPU, in evaluation mode.

        Raises:
            ControlNetFileError: If the files have changed, and hold it no more.
        """
        tensors, network = self._named(_of_files(self.path, read_tensors)), self.empty()
        self._check(tensors, network)
        wrong = [name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
        if wrong:
            raise ControlNetFileError(f"{self.path}: its {wrong[0]} holds NaN or infinite values; wanted: finite ones")
        if self.to_base:
            base = read_tensors(self.checkpoint.weight_files("unet"))
            tensors = {
                name: each.float() + base[name].float() if name in base else each for name, each in tensors.items()
            }
        network.load_state_dict({name: each.to(dtype) for name, each in tensors.items()}, assign=True)
        return network.requires_grad_(False).eval()

    def empty(self) -> ControlNetModel | ControlNetUnionModel:
        """The network without weights, on the meta device."""
        with torch.device("meta"):
            return _class_of(self.config).from_config(self.config).eval()

    def _named(self, tensors: Tensors) -> Tensors:
        return _in_diffusers_names(self.path, tensors, self.config)

    def _check(self, tensors: Tensors, network: torch.nn.Module) -> None:
        """Every weight of the network has its tensor, and every tensor its weight."""
        wrong = difference(tensors, network.state_dict())
        if wrong is not None:
            raise ControlNetFileError(f"{self.path} does not hold what {self.judge} says: {wrong}")


def load_controlnet(path: Path, checkpoint: Checkpoint, dtype: torch.dtype) -> ControlNetModel | ControlNetUnionModel:
    """The network on the CPU.

    Raises:
        ControlNetFileError: If the files do not hold such a network, whole, and nothing besides.
    """
    return ControlNetFiles.look(path, checkpoint).load(dtype)


def _class_of(config: Mapping[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, config["_class_name"])


def _of_files(path: Path, read: Callable[[Iterable[Path]], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    try:
        if path.is_dir() and not (path / "config.json").is_file():
            for file in path.glob("*.safetensors"):  # of another kind, perhaps
                _refuse_other_kinds(file, empty_tensors([file]))
        return read([path] if path.is_file() else weight_files(path))
    except WeightFileError as error:
        raise ControlNetFileError(str(error)) from error


def _config_of_directory(path: Path) -> dict[str, Any]:
    """With the class's defaults for what it leaves out."""
    try:
        config = dict(json.loads((path / "config.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ControlNetFileError(f"{path} is not a diffusers ControlNet: {error}") from error
    name = config.get("_class_name")
    if name not in SERVED:
        raise ControlNetFileError(f"{path} holds a {name}; served are {PLAIN} and {UNION}")
    return _with_defaults(config | {"_class_name": SERVED[name]})


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that the class takes, all of them."""
    parameters = inspect.signature(_class_of(config).__init__).parameters
    settings = {key: config.get(key, each.default) for key, each in parameters.items() if key != "self"}
    return {"_class_name": config["_class_name"], **settings}


def _refuse_other_kinds(path: Path, tensors: Tensors) -> None:
    kind = foreign_kind(tensors)
    if kind is not None:
        raise ControlNetFileError(f"{path} is {kind}; served are ControlNets")
    if UNION_WEIGHT in tensors:
        raise ControlNetFileError(
            f"{path} is a ControlNetUnion, whose config a file does not say; wanted: its directory"
        )


def _in_diffusers_names(path: Path, tensors: Tensors, layout: Mapping[str, Any]) -> Tensors:
    """The weights by their names in diffusers, without the mark of differences.

    Args:
        path: For the messages.
        tensors: As the file has them.
        layout: `layers_per_block`, `class_embed_type` and `addition_embed_type` of the network.

    Raises:
        ControlNetFileError: If diffusers' converter fails, or uses not all of them.
    """
    from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING, convert_controlnet_checkpoint

    own = {name.removeprefix("control_model."): each for name, each in tensors.items() if name != DIFFERENCE}
    if CONVERTED in own:
        return own
    try:
        converted = convert_controlnet_checkpoint(own, layout)
    except (KeyError, ValueError, IndexError) as error:
        raise ControlNetFileError(f"{path} is no ControlNet: diffusers cannot convert it ({error!r})") from error
    for embedding in ("class_embed_type", "addition_embed_type"):  # which the converter leaves out
        if layout.get(embedding):
            names = DIFFUSERS_TO_LDM_MAPPING["controlnet"][embedding]
            converted |= {new: own[old] for new, old in names.items() if old in own}
    converted = {name: tensor for name, tensor in converted.items() if tensor is not None}
    used = {id(tensor) for tensor in converted.values()}
    unused = [name for name, tensor in own.items() if id(tensor) not in used]
    if unused:
        raise ControlNetFileError(
            f"{path} is no ControlNet as served: it has {unused[0]} besides ({len(unused)} in all)"
        )
    return converted


def _config_of_tensors(path: Path, tensors: Tensors, checkpoint: Checkpoint) -> dict[str, Any]:
    """That of diffusers' `ControlNetModel.from_unet`, with the blocks and the picture's embedding that the file has."""
    unets = {key: value for key, value in checkpoint.unet_config.items() if value is not None}
    config = _with_defaults(unets | {"_class_name": PLAIN})
    shapes = {name: tensor.shape for name, tensor in _in_diffusers_names(path, tensors, config).items()}
    blocks = len(config["down_block_types"])
    depths = [_depth(shapes, f"down_blocks.{index}.attentions.0") for index in range(blocks)]
    config["down_block_types"] = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    config["transformer_layers_per_block"] = [depth or 1 for depth in depths]
    mid = _depth(shapes, "mid_block.attentions.0")
    config["mid_block_type"] = "UNetMidBlock2DCrossAttn" if mid else "UNetMidBlock2D"
    config[EMBEDDING] = _embedding_channels(shapes)
    return config


def _depth(shapes: Mapping[str, Any], attention: str) -> int:
    """Transformer blocks of an attention."""
    blocks = f"{attention}.transformer_blocks."
    return len({name.removeprefix(blocks).split(".")[0] for name in shapes if name.startswith(blocks)})


def _embedding_channels(shapes: Mapping[str, Any]) -> list[int]:
    """Of the picture's embedding: one more for each halving."""
    weight = "controlnet_cond_embedding.{}.weight"
    channels = [shapes[key][0]] if (key := weight.format("conv_in")) in shapes else []
    while (key := weight.format(f"blocks.{2 * len(channels) - 1}")) in shapes:
        channels.append(shapes[key][0])
    return channels
