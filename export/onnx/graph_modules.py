"""Networks as modules of positional tensors, which is what becomes a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...python_backends.networks.latent_decoding import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from ...python_backends.networks.controlnet_modules import PictureEmbedder


class WithoutAbsentInputs(torch.nn.Module):
    """A module that takes an empty tensor for an absent input, as one that does not have the input at all."""

    def __init__(self, module: torch.nn.Module, inputs: Sequence[str], present: Sequence[str]) -> None:
        """Shares the module.

        Args:
            module: Takes the inputs in their order.
            inputs: Names of all.
            present: Names of those that `forward` takes, in the order in which it does.
        """
        super().__init__()
        self.module = module
        self._inputs, self._present = tuple(inputs), tuple(present)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The module's outputs."""
        given = dict(zip(self._present, tensors, strict=True))
        return self.module(*(given[name] if name in given else torch.empty(0) for name in self._inputs))


class Tensors(torch.nn.Module):
    """A module whose arguments are all in one `*tensors`, as in all modules that become graphs."""

    def __init__(self, module: torch.nn.Module) -> None:
        """Shares the module."""
        super().__init__()
        self.module = module

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The module's outputs."""
        return self.module(*tensors)


class TextEncoderGraph(torch.nn.Module):
    """What diffusers' `encode_prompt` takes from a CLIP text encoder."""

    def __init__(self, encoder: CLIPTextModel | CLIPTextModelWithProjection, penultimate: bool, pooled: bool) -> None:
        """Shares the encoder.

        Args:
            encoder: The network.
            penultimate: Whether the hidden states are the last but one layer's (SDXL); else they are the last layer's,
                normalised (SD 1.5).
            pooled: Whether the projected embedding of the whole text is wanted: SDXL's second encoder.
        """
        super().__init__()
        self.encoder = encoder
        self._penultimate, self._pooled = penultimate, pooled

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Hidden states [B, tokens, width], and where wanted the pooled embedding [B, pooled width].

        Args:
            input_ids: [B, tokens] int64.
        """
        encoded = self.encoder(input_ids, output_hidden_states=True)
        hidden_states = encoded.hidden_states[-2] if self._penultimate else encoded.last_hidden_state
        return (hidden_states, encoded.text_embeds) if self._pooled else (hidden_states,)


class VaeDecoderGraph(torch.nn.Module):
    """Latents → pictures: `networks.latent_decoding.decode`."""

    def __init__(self, vae: AutoencoderKL) -> None:
        """Shares the autoencoder."""
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, H, W] float32, about -1 to 1.

        Args:
            latents: [B, C, h, w] as the denoiser gives them, of the VAE's type.
        """
        return decode(self.vae, latents)


class ControlEmbedder(torch.nn.Module):
    """A ControlNet's embedding of its picture, which is computed once per picture."""

    def __init__(self, embed: PictureEmbedder) -> None:
        """Shares the embedding, under its name in the network."""
        super().__init__()
        self.controlnet_cond_embedding = embed.embedding
        self._embed = embed

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, channels, h, w].

        Args:
            pixels: [B, 3, H, W], 0 to 1.
        """
        return self._embed(pixels)
