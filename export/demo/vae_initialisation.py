"""Starts the autoencoder as a linear one, so that its training begins with the right colours.

On flat pictures a freshly initialised VAE learns brightness first and colour very late: its group norms divide the
colour away and its posterior starts as pure noise. Here every residual branch starts at zero and the trunk carries RGB:
the encoder averages 8 x 8 pixels, the decoder repeats them. The identity silu(x) - silu(-x) = x takes the colours
through the two output activations. All other channels keep their random weights and learn the edges.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

LOG_VARIANCE = -6.0
"""Where the posterior's log-variance starts."""


@torch.no_grad()
def start_as_mean_pooling(vae: AutoencoderKL) -> None:
    """Sets the weights so that the latents are 8 x 8 means of red, green and blue, in place.

    Args:
        vae: freshly made, with as many latent channels as colours or more.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _pass_through(module.conv_shortcut)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
            nn.init.zeros_(module.to_out[0].bias)
        elif isinstance(module, Upsample2D):
            nn.init.dirac_(module.conv.weight)
            nn.init.zeros_(module.conv.bias)
        elif isinstance(module, Downsample2D):
            nn.init.zeros_(module.conv.weight)
            nn.init.zeros_(module.conv.bias)
            channels = torch.arange(len(module.conv.weight))
            module.conv.weight[channels, channels, :2, :2] = 0.25
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
        _split_signs(conv)
    for conv in (vae.encoder.conv_out, vae.decoder.conv_out):
        _join_signs(conv)
    _pass_through(vae.quant_conv)
    _pass_through(vae.post_quant_conv)
    _bias(vae.quant_conv)[vae.config.latent_channels :] = LOG_VARIANCE


def _bias(conv: nn.Conv2d) -> Tensor:
    if conv.bias is None:
        raise ValueError("the autoencoder's convolutions have biases")
    return conv.bias


def _pass_through(conv: nn.Conv2d) -> None:
    """Output channel c becomes input channel c; further outputs keep their random weights."""
    shared = min(conv.weight.shape[:2])
    conv.weight[:shared] = nn.init.dirac_(torch.empty_like(conv.weight))[:shared]
    _bias(conv)[:shared] = 0


def _split_signs(conv: nn.Conv2d) -> None:
    """Channels 0-2 carry the colours, 3-5 their negatives, 6 is constant."""
    conv.weight[:7] = 0
    _bias(conv)[:7] = 0
    middle = conv.weight.shape[-1] // 2
    for colour in range(3):
        conv.weight[colour, colour, middle, middle] = 1
        conv.weight[colour + 3, colour, middle, middle] = -1
    _bias(conv)[6] = 1


def _join_signs(conv: nn.Conv2d) -> None:
    """Each colour is its channel minus that of its negative; further outputs start small."""
    conv.weight *= 0.1
    conv.weight[:3] = 0
    _bias(conv).zero_()
    middle = conv.weight.shape[-1] // 2
    for colour in range(3):
        conv.weight[colour, colour, middle, middle] = 1
        conv.weight[colour, colour + 3, middle, middle] = -1
