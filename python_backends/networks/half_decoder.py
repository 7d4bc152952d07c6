"""An autoencoder that decodes in float16 though its activations are larger than float16 can be, as SDXL's are.

What blocks hand on, and what their convolutions give to norms, is made smaller by a power of two: in float32 that
changes no bit of the picture, since norms take the factor out again. (It is what "fp16-fix" autoencoders were trained
for; here it needs no training.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SCALE = 2.0**-5
"""Up to two million fits, at the cost of bits of weights below 2e-3 of which float16 has none to spare."""


@torch.no_grad()
def scale_decoder(vae: AutoencoderKL, scale: float = SCALE) -> None:
    """Scales the decoder's weights and norms in place; the picture stays what it was.

    Args:
        vae: Before its modules are fused.
        scale: A power of two.
    """
    decoder: Any = vae.decoder
    _scale(decoder.conv_in, scale)
    modules: list[Any] = list(decoder.modules())
    for module in modules:
        if isinstance(module, ResnetBlock2D):
            _scale(module.conv1, scale)
            _scale(module.conv2, scale)
            if module.conv_shortcut is not None:  # takes what is scaled already
                module.conv_shortcut.bias.mul_(scale)
        elif isinstance(module, Attention):
            _scale(module.to_out[0], scale)
        elif isinstance(module, Upsample2D):
            module.conv.bias.mul_(scale)
        elif isinstance(module, torch.nn.GroupNorm):
            module.eps *= scale**2


def _scale(layer: torch.nn.Conv2d | torch.nn.Linear, scale: float) -> None:
    for parameter in layer.parameters():
        parameter.mul_(scale)
