"""What a model needs of the machine, as parameters of its configuration: `launcher.needs` adds them up.

| parameter | |
|---|---|
| `needs_mib` | memory of one process in a call for one request of the default size, without what every process takes |
| `answer_mib` | of a ControlNet: residuals of that call, which pass through shared memory, or a GPU's pool |
| `gflop` | 10⁹ floating-point operations of that call |

Memory is that of the GPU for what is on one. Engines are counted as the modules whose place they take, which nobody has
compared.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING

import torch

from ...python_backends.controlnets.network import EMBEDDING_BYTES
from ...python_backends.controlnets.weights import ControlNetFiles
from ...python_backends.lora.patching.resident import DEVICE_BYTES, KEPT_BYTES
from ...python_backends.networks.controlnet_modules import PositionalControlNet
from ...python_backends.networks.needs import (
    controlnet_needs,
    text_encoder_needs,
    unet_needs,
    vae_encoder_needs,
    vae_needs,
)
from ...python_backends.networks.prompt_encoding import PromptEncoder
from ...python_backends.networks.prompt_projections import MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...python_backends.networks.checkpoint import Checkpoint
    from ...python_backends.networks.needs import Needs
    from .serving_options import ServedControlNet, ServingOptions

MIB = 2**20


def shard(checkpoint: Checkpoint, options: ServingOptions, gpu: int | None) -> dict[str, str]:
    """Of a UNet shard; a GPU keeps LoRAs, a CPU projections of prompts, and small weights with LoRAs in them."""
    needs, patched = _of(unet_needs, checkpoint), options.loras is not None
    of_loras = DEVICE_BYTES if gpu is not None else KEPT_BYTES if needs.adaptable <= KEPT_BYTES else 0
    kept = (of_loras if patched else 0) + (MOST_BYTES if gpu is None and options.runtime == "torch" else 0)
    copies = needs.adaptable // torch.float32.itemsize if options.fp8 else 0  # a byte for each, convolutions' too
    return _parameters(needs, options.dtype_on(gpu), patched, kept + copies)


def vae_encoder(checkpoint: Checkpoint, options: ServingOptions) -> dict[str, str]:
    """Of a VAE encoder."""
    return _parameters(_of(vae_encoder_needs, checkpoint), _vae_dtype(checkpoint, options, encodes=True))


def vae_decoder(checkpoint: Checkpoint, options: ServingOptions) -> dict[str, str]:
    """Of a VAE decoder."""
    dtype = "float16" if options.vae_float16 else _vae_dtype(checkpoint, options)
    return _parameters(_of(vae_needs, checkpoint), dtype)


def _vae_dtype(checkpoint: Checkpoint, options: ServingOptions, encodes: bool = False) -> str:
    dtype = getattr(torch, options.dtype_on(options.vae_gpu))
    return str(checkpoint.vae_dtype(dtype, encodes)).removeprefix("torch.")


def text_encoder(checkpoint: Checkpoint, options: ServingOptions) -> dict[str, str]:
    """Of text encoders, with the embeddings that they remember, in main memory."""
    gpu = options.text_encoder_gpu
    kept = int(inspect.signature(PromptEncoder).parameters["cache_bytes"].default) if gpu is None else 0
    return _parameters(_of(text_encoder_needs, checkpoint), options.dtype_on(gpu), options.loras is not None, kept)


def controlnet(network: ServedControlNet, checkpoint: Checkpoint, options: ServingOptions) -> dict[str, str]:
    """Of a ControlNet, with the embedded pictures that it keeps."""
    gpu = network.gpus[0] if network.gpus else None
    module = PositionalControlNet(ControlNetFiles.look(network.path, checkpoint).empty())
    needs, dtype = controlnet_needs(module, checkpoint), options.dtype_on(gpu)
    answer = {"answer_mib": _mib(needs.answer * getattr(torch, dtype).itemsize // torch.float32.itemsize)}
    return {**_parameters(needs, dtype, kept=EMBEDDING_BYTES), **answer}


@cache
def _of(needs: Callable[[Checkpoint], Needs], checkpoint: Checkpoint) -> Needs:
    """Once for all shards."""
    return needs(checkpoint)


def _parameters(needs: Needs, dtype: str, patched: bool = False, kept: int = 0) -> dict[str, str]:
    nbytes = needs.nbytes(getattr(torch, dtype), patched) + kept
    return {"needs_mib": _mib(nbytes), "gflop": f"{needs.flop / 1e9:.3g}"}


def _mib(nbytes: int) -> str:
    return str(-(-nbytes // MIB))
