"""Which checkpoints a ControlNet fits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...python_backends.controlnets.weights import (
    EMBEDDING,
    UNION,
    ControlNetFileError,
    controlnet_config,
    load_controlnet,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...python_backends.networks.checkpoint import Checkpoint
    from .serving_options import ServedControlNet

ALIKE = (
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "cross_attention_dim",
    "addition_embed_type",
    "in_channels",
)
"""Of a ControlNet's config, what its UNet's config has to say too: else residuals would not fit."""


def fitting(served: ServedControlNet, checkpoints: Mapping[str, Checkpoint]) -> dict[str, ServedControlNet]:
    """The ControlNet as those pipelines serve it that it fits, by their names.

    Args:
        served: What and where it is.
        checkpoints: Of the pipelines.

    Raises:
        ControlNetFileError: If it fits none, with what is wrong.
    """
    found: dict[str, ServedControlNet] = {}
    wrong: list[ControlNetFileError] = []
    for name, checkpoint in checkpoints.items():
        try:
            found[name] = _checked(served, checkpoint)
        except ControlNetFileError as error:
            wrong.append(error)
    if not found:
        raise wrong[0]
    return found


def _checked(served: ServedControlNet, checkpoint: Checkpoint) -> ServedControlNet:
    config = controlnet_config(served.path, checkpoint)
    unet = checkpoint.unet_config
    for key in ALIKE:
        if _plain(config[key]) != _plain(unet.get(key, config[key])):
            raise ControlNetFileError(
                f"{served.path} does not fit {checkpoint.path}: its {key} is {config[key]}, the UNet's {unet.get(key)}"
            )
    if config["conditioning_channels"] != 3:
        raise ControlNetFileError(
            f"{served.path} takes {config['conditioning_channels']} channels; served are RGB pictures"
        )
    factor = 2 ** (len(config[EMBEDDING]) - 1)
    if factor != checkpoint.vae_scale_factor:
        raise ControlNetFileError(
            f"{served.path} does not fit {checkpoint.path}: it makes a picture {factor} times smaller, the VAE "
            f"{checkpoint.vae_scale_factor} times"
        )
    if served.path.is_file():
        import torch

        load_controlnet(served.path, checkpoint, torch.float32)  # only its weights say whether they fit
    modes = config["num_control_type"] if config["_class_name"] == UNION else 0
    return replace(served, control_modes=modes, pools=bool(config["global_pool_conditions"]))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
