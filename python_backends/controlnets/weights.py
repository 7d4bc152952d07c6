"""A ControlNet's files: a diffusers directory, or a single safetensors file as their trainers publish them."""

from __future__ import annotations

import inspect
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..networks.checkpoint import missing_weights, weights_variant

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from diffusers import ControlNetModel, ControlNetUnionModel

    from ..networks.checkpoint import Checkpoint

UNION = "ControlNetUnionModel"
SERVED = ("ControlNetModel", UNION)
"""Classes of diffusers that are served."""

EMBEDDING = "conditioning_embedding_out_channels"
CONVERTED, UNION_WEIGHT = "time_embedding.linear_1.weight", "task_embedding"
"""Tensors that only files in diffusers' naming have, and that only unions have."""
EMBEDDING_WEIGHT = "controlnet_cond_embedding.{}.weight"


class ControlNetFileError(ValueError):
    """What the path holds is no ControlNet that can be served; the message says why."""


def controlnet_config(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """A ControlNet's config in diffusers' terms, with the class's defaults for what it leaves out.

    A single file has none: it is taken to have the encoder of the checkpoint's UNet, which loading then checks.

    Args:
        path: Directory or file.
        checkpoint: Whose UNet it steers.

    Raises:
        ControlNetFileError: If there is no ControlNet.
    """
    if path.suffix == ".safetensors":
        return _single_file_config(path, _shapes(path), checkpoint)
    if not any(path.glob("diffusion_pytorch_model*.safetensors")):
        raise ControlNetFileError(f"{path} holds no weights (diffusion_pytorch_model.safetensors)")
    try:
        config = dict(json.loads((path / "config.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ControlNetFileError(f"{path} is not a diffusers ControlNet: {error}") from error
    if config.get("_class_name") not in SERVED:
        raise ControlNetFileError(f"{path} holds a {config.get('_class_name')}; served are {' and '.join(SERVED)}")
    parameters = inspect.signature(_class_of(config).__init__).parameters
    defaults = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
    return defaults | config


def load_controlnet(path: Path, checkpoint: Checkpoint, dtype: torch.dtype) -> ControlNetModel | ControlNetUnionModel:
    """The network on the CPU.

    Raises:
        ControlNetFileError: If it does not hold the weights of such a network, all of them.
    """
    if path.suffix != ".safetensors":
        kind = _class_of(controlnet_config(path, checkpoint))
        network = kind.from_pretrained(path, dtype=dtype, variant=weights_variant(path), use_safetensors=True)
        if missing := missing_weights(network):
            raise ControlNetFileError(f"{path} is not whole: it lacks {missing[0]} ({len(missing)} in all)")
        return network
    shapes = _shapes(path)
    config = _single_file_config(path, shapes, checkpoint)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config), "utf-8")
        try:
            network = _class_of(config).from_single_file(
                str(path), config=directory, dtype=dtype, local_files_only=True
            )
        except (KeyError, ValueError, RuntimeError, OSError) as error:
            raise ControlNetFileError(f"{path} does not fit {checkpoint.path}: {error}") from error
    if missing := missing_weights(network):
        raise ControlNetFileError(f"{path} does not fit {checkpoint.path}: it lacks {missing[0]}")
    foreign = set(shapes) - set(network.state_dict()) if CONVERTED in shapes else set()
    if foreign:
        raise ControlNetFileError(f"{path} is no ControlNet as served: it has {min(foreign)} besides")
    return network


def _class_of(config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, config["_class_name"])


def _shapes(path: Path) -> dict[str, list[int]]:
    """Names and shapes of a single file's tensors."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  not a mapping
    except (OSError, SafetensorError) as error:
        raise ControlNetFileError(f"{path} is no safetensors file: {error}") from error


def _single_file_config(path: Path, shapes: Mapping[str, list[int]], checkpoint: Checkpoint) -> dict[str, Any]:
    """That of diffusers' `ControlNetModel.from_unet`, with the picture's embedding as wide as the file has it."""
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    options = {}
    if UNION_WEIGHT in shapes:
        raise ControlNetFileError(
            f"{path} is a ControlNetUnion, whose config a file does not say; wanted: its directory"
        )
    if EMBEDDING_WEIGHT.format("conv_in") in shapes:
        channels = [shapes[EMBEDDING_WEIGHT.format("conv_in")][0]]
        while (key := EMBEDDING_WEIGHT.format(f"blocks.{2 * len(channels) - 1}")) in shapes:
            channels.append(shapes[key][0])
        options[EMBEDDING] = tuple(channels)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(checkpoint.unet_config)
        network = ControlNetModel.from_unet(unet, load_weights_from_unet=False, **options)
    return dict(network.config) | {"_class_name": "ControlNetModel"}
