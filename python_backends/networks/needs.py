"""What a call of a network takes, in memory and in arithmetic: found on the meta device, without weights."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..lora.files.modules import adaptable_weights
from .controlnet_modules import ARGUMENTS
from .latent_decoding import decode
from .latent_encoding import VaeEncoder
from .unet import META, empty_arguments, example
from .unet_halves import DecoderHalf, EncoderHalf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .checkpoint import Checkpoint
    from .controlnet_modules import PositionalControlNet

ROWS = 2
"""Of a UNet's or ControlNet's call for one request: both halves of its guidance."""

OF_ACTIVATIONS = 3
"""Memory that calls occupy on a CPU, in live tensors: oneDNN's copies in its own layouts and gaps of the heap besides.

Measured with a UNet and a VAE of SD 1.5's size at 512²: 2.0 to 4.8."""


@dataclass(frozen=True)
class Needs:
    """Of one process, in float32.

    Attributes:
        weights: Bytes of parameters and buffers.
        adaptable: Of these, bytes of what LoRAs are patched into: kept a second time, untouched, once one is.
        activations: Most bytes of tensors that live at once in a call for one request of the default size.
        answer: Bytes that it returns.
        flop: Floating-point operations of it.
    """

    weights: int
    adaptable: int
    activations: int
    answer: int
    flop: int

    def nbytes(self, dtype: torch.dtype, patched: bool) -> int:
        """Memory beside what any process takes, in bytes.

        Args:
            dtype: Of weights and activations.
            patched: Whether LoRAs are patched in.
        """
        of_weights = self.weights + (self.adaptable if patched else 0)
        return (of_weights + OF_ACTIVATIONS * self.activations) * dtype.itemsize // torch.float32.itemsize


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that operators return, for as long as these live.

    What an operator needs within itself is not seen.

    Attributes:
        peak: Most bytes at once.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        """Starts with none.

        Args:
            known: Tensors that are there anyway: they, and views of them, are not counted.
        """
        super().__init__()
        self.peak = self._now = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._seen = {storage._cdata for storage in self._known}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the operator."""
        returned = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return returned

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._seen:
            self._seen.add(key)
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, nbytes: int) -> None:
        self._seen.discard(key)
        self._now -= nbytes


def unet_needs(checkpoint: Checkpoint) -> Needs:
    """Of a UNet that serves a request with guidance."""
    unet, given = checkpoint.empty_part("unet"), empty_arguments(checkpoint, ROWS)
    encoder, decoder = EncoderHalf(unet), DecoderHalf(unet)
    return _needs([unet], lambda: decoder(given[2], *encoder(*given)))


def vae_needs(checkpoint: Checkpoint) -> Needs:
    """Of an autoencoder that decodes a picture."""
    vae, latents = checkpoint.empty_part("vae"), example(checkpoint, 1, checkpoint.latent_channels)["LATENTS"].to(META)
    return _needs([vae], lambda: decode(vae, latents))


def vae_encoder_needs(checkpoint: Checkpoint) -> Needs:
    """Of an autoencoder's encoder, for a picture."""
    vae, (height, width) = checkpoint.empty_part("vae"), checkpoint.default_size
    encoder = VaeEncoder(vae)
    return _needs([encoder], lambda: encoder(torch.zeros(1, 3, height, width, device=META)))


def text_encoder_needs(checkpoint: Checkpoint) -> Needs:
    """Of the text encoders, for a prompt and a negative prompt."""
    encoders = [checkpoint.empty_part(part) for part in checkpoint.text_encoders]
    tokens, _ = checkpoint.text_embedding_shape
    ids = torch.zeros(ROWS, tokens, dtype=torch.int64, device=META)
    return _needs(encoders, lambda: [encoder(ids) for encoder in encoders])


def controlnet_needs(module: PositionalControlNet, checkpoint: Checkpoint) -> Needs:
    """Of a ControlNet that steers a request with guidance.

    Args:
        module: On the meta device.
        checkpoint: Whose UNet it steers.
    """
    given = empty_arguments(checkpoint, ROWS, checkpoint.latent_channels)[:ARGUMENTS]
    height, width = checkpoint.default_size
    picture = torch.zeros(1, 3, height, width, device=META)
    options = {"modes": (0,), "scale": None} if module.control_modes else {}
    return _needs(
        [module, module.embed.embedding],
        lambda: module(*given, module.embed(picture).expand(ROWS, -1, -1, -1), **options),
    )


def _needs(networks: list[torch.nn.Module], call: Callable[[], object]) -> Needs:
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    adaptable = [weight for network in networks for weight in adaptable_weights(network).values()]
    with torch.inference_mode():
        with LiveTensors(tensors) as live:
            answer = tree_leaves(call())
        with FlopCounterMode(display=False) as counter:
            call()
    return Needs(
        weights=sum(tensor.nbytes for tensor in tensors),
        adaptable=sum(tensor.nbytes for tensor in adaptable),
        activations=live.peak,
        answer=sum(tensor.nbytes for tensor in answer if isinstance(tensor, torch.Tensor)),
        flop=counter.get_total_flops(),
    )
