"""Which checkpoints a ControlNet fits: those whose UNets give it its inputs and take its residuals."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from ...python_backends.controlnets.weights import EMBEDDING, UNION, ControlNetFileError, ControlNetFiles
from ...python_backends.networks.controlnet_modules import ARGUMENTS, PositionalControlNet
from ...python_backends.networks.unet import META, empty_arguments
from ...python_backends.networks.unet_halves import EncoderHalf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...python_backends.networks.checkpoint import Checkpoint
    from .serving_options import ServedControlNet

INPUTS = ("in_channels", "cross_attention_dim", "addition_embed_type", "projection_class_embeddings_input_dim")
"""Of a config, what says what the network takes: the likely reasons where it does not take what the UNet takes."""


def fitting(served: ServedControlNet, checkpoints: Mapping[str, Checkpoint]) -> dict[str, ServedControlNet]:
    """The ControlNet as those pipelines serve it that it fits, by their names.

    Args:
        served: What and where it is.
        checkpoints: Of the pipelines.

    Raises:
        ControlNetFileError: If it fits none, with what is wrong, or holds differences to more than one.
    """
    found: dict[str, ServedControlNet] = {}
    wrong: list[ControlNetFileError] = []
    bases: set[str] = set()
    for name, checkpoint in checkpoints.items():
        try:
            files = ControlNetFiles.look(served.path, checkpoint)
            found[name] = _checked(served, files)
        except ControlNetFileError as error:
            wrong.append(error)
        else:
            bases |= {str(checkpoint.path)} if files.to_base else set()
    if not found:
        raise wrong[0]
    if len(bases) > 1:
        raise ControlNetFileError(
            f"{served.path} holds differences to a UNet and fits those of {' and '.join(sorted(bases))}; wanted: "
            "a repository of its own for each"
        )
    return found


def _checked(served: ServedControlNet, files: ControlNetFiles) -> ServedControlNet:
    config = files.config
    if config["conditioning_channels"] != 3:
        raise ControlNetFileError(
            f"{served.path} takes {config['conditioning_channels']} channels; served are RGB pictures"
        )
    factor, wanted = 2 ** (len(config[EMBEDDING]) - 1), files.checkpoint.vae_scale_factor
    if factor != wanted:
        raise ControlNetFileError(
            f"{served.path} does not fit {files.checkpoint.path}: it makes a picture {factor} times smaller, the VAE "
            f"{wanted} times"
        )
    given, taken = _residuals(files), _skips(files.checkpoint)
    if given != taken:
        raise ControlNetFileError(f"{served.path} does not fit {files.checkpoint.path}: {_difference(given, taken)}")
    modes = config["num_control_type"] if config["_class_name"] == UNION else 0
    return replace(served, control_modes=modes, pools=bool(config["global_pool_conditions"]))


def _residuals(files: ControlNetFiles) -> list[tuple[int, ...]]:
    """Shapes of what it gives for the UNet's inputs at the default size, computed without values."""
    module = PositionalControlNet(files.empty())
    inputs = empty_arguments(files.checkpoint, 1, files.checkpoint.latent_channels)[:ARGUMENTS]
    height, width = files.checkpoint.default_size
    options = {"modes": (0,), "scale": None} if module.control_modes else {}
    try:
        embedded = module.embed(torch.zeros(1, 3, height, width, device=META))
        return [tuple(tensor.shape[1:]) for tensor in module(*inputs, embedded, **options)]
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ControlNetFileError(
            f"{files.path} does not fit {files.checkpoint.path}: {_reason(files, error)}"
        ) from error


@cache
def _skips(checkpoint: Checkpoint) -> list[tuple[int, ...]]:
    """Shapes of what residuals are added to: the skips and then the mid block's output."""
    mid, _, *skips = EncoderHalf(checkpoint.empty_part("unet"))(*empty_arguments(checkpoint, 1))
    return [tuple(tensor.shape[1:]) for tensor in (*skips, mid)]


def _reason(files: ControlNetFiles, error: Exception) -> str:
    for key in INPUTS:
        own, unets = files.config.get(key), files.checkpoint.unet_config.get(key)
        if key == "in_channels":  # of a UNet that inpaints, a ControlNet takes the latents alone
            unets = files.checkpoint.latent_channels
        if _plain(own) != _plain(unets):
            return f"its {key} is {own}, the UNet's {unets}"
    return " ".join(str(error).split())


def _plain(value: Any) -> Any:
    """One value where a list repeats it for every block."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values[0] if len(set(values)) == 1 else values


def _difference(given: Sequence[tuple[int, ...]], taken: Sequence[tuple[int, ...]]) -> str:
    if len(given) != len(taken):
        return f"it gives {len(given)} residuals, the UNet takes {len(taken)}"
    own, unets = next(pair for pair in zip(given, taken, strict=True) if pair[0] != pair[1])
    return f"one of its residuals is {' × '.join(map(str, own))}, the UNet's {' × '.join(map(str, unets))}"
