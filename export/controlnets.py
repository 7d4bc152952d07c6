"""`--controlnet NAME=DIR[@GPUS]`: what the exporter is told of a ControlNet, checked against the checkpoint."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import ControlNetModel

from .serving_options import ServedControlNet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..python_backends.checkpoint import Checkpoint

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
EMBEDDING = "conditioning_embedding_out_channels"
ALIKE = (
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "cross_attention_dim",
    "addition_embed_type",
    "in_channels",
)
"""Of a ControlNet's config, what its UNet's config has to say too: else residuals would not fit."""


_DEFAULTS = inspect.signature(ControlNetModel.__init__).parameters


def served_controlnets(texts: Sequence[str], checkpoint: Checkpoint) -> tuple[ServedControlNet, ...]:
    """The ControlNets of a repository.

    Args:
        texts: `NAME=DIR` or `NAME=DIR@GPU,GPU`, one each.
        checkpoint: Whose UNet they steer.

    Raises:
        ValueError: With what is wrong and what is wanted.
    """
    served = [_parsed(text) for text in texts]
    names = [each.name for each in served]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--controlnet names {name} twice; wanted: a name of its own for each")
    for each in served:
        _check(each, checkpoint)
    return tuple(served)


def _parsed(text: str) -> ServedControlNet:
    name, is_named, rest = text.partition("=")
    directory, is_placed, gpus = rest.rpartition("@") if "@" in rest else (rest, "", "")
    well_placed = not is_placed or re.fullmatch(r"\d+(,\d+)*", gpus)
    if not (is_named and NAME.fullmatch(name) and directory and well_placed):
        raise ValueError(f'--controlnet is "{text}"; wanted: NAME=DIR, or NAME=DIR@0,1 for an instance on each GPU')
    placed = tuple(int(gpu) for gpu in gpus.split(",")) if is_placed else ()
    return ServedControlNet(name, Path(directory).resolve(), placed)


def _check(served: ServedControlNet, checkpoint: Checkpoint) -> None:
    config = _config(served.path)
    if config.get("_class_name") != "ControlNetModel":
        raise ValueError(f"{served.path} holds a {config.get('_class_name')}; served are ControlNetModel")
    if config.get("global_pool_conditions"):
        raise ValueError(f"{served.path} pools its residuals (global_pool_conditions), which is not served")
    for key in ALIKE:
        if key in config and config[key] != checkpoint.unet_config.get(key, config[key]):
            raise ValueError(
                f"{served.path} does not fit {checkpoint.path}: its {key} is {config[key]}, the UNet's "
                f"{checkpoint.unet_config.get(key)}"
            )
    if config.get("conditioning_channels", 3) != 3:
        raise ValueError(f"{served.path} takes {config['conditioning_channels']} channels; served are RGB pictures")
    factor = 2 ** (len(config.get(EMBEDDING, _DEFAULTS[EMBEDDING].default)) - 1)
    if factor != checkpoint.vae_scale_factor:
        raise ValueError(
            f"{served.path} does not fit {checkpoint.path}: it makes a picture {factor} times smaller, the VAE "
            f"{checkpoint.vae_scale_factor} times"
        )


def _config(directory: Path) -> dict[str, Any]:
    if not any(directory.glob("diffusion_pytorch_model*.safetensors")):
        raise ValueError(f"{directory} holds no weights (diffusion_pytorch_model.safetensors)")
    try:
        return dict(json.loads((directory / "config.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{directory} is not a diffusers ControlNet: {error}") from error
