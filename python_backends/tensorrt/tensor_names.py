"""Names of graphs and engines, and of what goes in and out of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ENCODER, DECODER, VAE_DECODER = "unet_encoder", "unet_decoder", "vae_decoder"

WEIGHT = ".weight"
"""Ends the name of an input that is the weight of a module."""

WEIGHTS_DIGEST = "swiftdiffusion.weights_digest"
"""What a graph says of the network that it was made of: `networks.digests.weights_digest`."""

NORMS, PRECISION = "swiftdiffusion.norms", "swiftdiffusion.precision"
"""What it says of the form of its norms, and of its weights' type."""

ENCODER_INPUTS = ("latents", "timesteps", "encoder_hidden_states", "text_embeds", "time_ids", "timestep_cond")
"""The arguments of `EncoderHalf.forward`; a graph takes those that its UNet has."""

CONTROLNET_INPUTS = ENCODER_INPUTS[:5]
"""Those that a ControlNet takes too."""

CONTROL_EMBEDDING = "control_embedding"
"""The embedded picture that a ControlNet takes after them."""

_FIRST = ("mid", "embedding")


def halfway_of(count: int) -> list[str]:
    """Names of so many tensors of `networks.unet_halves.Halfway`, in its order."""
    return [*_FIRST, *(f"skip_{index}" for index in range(count - len(_FIRST)))]


def halfway_among(names: Iterable[str]) -> list[str]:
    """Those of a graph's tensors that go from one half to the other, in the order of `networks.unet_halves.Halfway`."""
    return halfway_of(len(_FIRST) + sum(name.startswith("skip_") for name in names))
