"""The server's own parts in one process, without a server: for measuring what a LoRA does at which step."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from ...python_backends.common.filesystem import sha256_of
from ...python_backends.engine.run import Denoising, LatentGeometry
from ...python_backends.engine.unet_calls import unet_calls
from ...python_backends.lora.files.canonical import adapted_modules
from ...python_backends.lora.files.canonicaliser import Canonicaliser
from ...python_backends.lora.files.lora_set import NO_LORAS, LoraSet, make_set
from ...python_backends.lora.files.modules import UNET
from ...python_backends.lora.files.outside_settings import NO_SETTINGS, OutsideSettings
from ...python_backends.lora.patching.resident import ResidentLoras
from ...python_backends.networks.latent_decoding import decode_latents
from ...python_backends.networks.prompt_encoding import PromptEncoder
from ...python_backends.networks.unet import UNet
from ...python_backends.request.completed import CompletedRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...python_backends.networks.checkpoint import Checkpoint
    from ...python_backends.networks.kept_embeddings import Embeddings

Runs = list[Denoising]


class LocalPipeline(ExitStack):
    """Denoises batches of requests with a LoRA set that may change between steps; a context manager."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        """Loads the checkpoint; the VAE at the first picture."""
        super().__init__()
        self._directory = Path(self.enter_context(TemporaryDirectory(prefix="swiftdiffusion-")))
        self._checkpoint, self._device, self._dtype = checkpoint, device, dtype
        self._unet = UNet(checkpoint, device, dtype)
        self._loras = ResidentLoras(self._unet.patcher, self._directory)
        self._encoder = PromptEncoder(checkpoint, device, dtype, lora_directory=self._directory)
        self._scheduler = checkpoint.scheduler_config
        self._canonicalise = Canonicaliser(checkpoint)
        self._vae: torch.nn.Module | None = None

    def add_lora(self, file: Path, scale: float = 1.0, outside: OutsideSettings = NO_SETTINGS) -> LoraSet:
        """Reads a LoRA file, under what is said of it elsewhere; the set that consists of it.

        Raises:
            InvalidRequestError: If the file is not a LoRA of this checkpoint.
        """
        target = self._path(outside.key(sha256_of(file)))
        if not target.exists():
            self._canonicalise(file, target, outside)
        return make_set([(target, scale)])

    def start(self, requests: Sequence[CompletedRequest], loras: LoraSet = NO_LORAS) -> Runs:
        """Runs at step 0, their prompts encoded with a set."""
        geometry = LatentGeometry(
            self._checkpoint.latent_channels,
            self._checkpoint.vae_scale_factor,
            self._checkpoint.guidance_embedding_width,
        )
        return [Denoising(request, self._scheduler, geometry, self._encode(request, loras)) for request in requests]

    def switch(self, runs: Runs, loras: LoraSet) -> Runs:
        """Copies of runs where they stand, to be gone on with under another set."""
        forked = copy.deepcopy(runs)
        for run in forked:
            run.set_embeddings(self._encode(run.request, loras))
        return forked

    @torch.inference_mode()
    def step(self, runs: Runs, loras: LoraSet) -> None:
        """One step of every run."""
        self._loras.ensure(loras)
        inputs = {run: run.model_input() for run in runs}
        predictions: Mapping[Denoising, dict[int, torch.Tensor]] = {run: {} for run in runs}
        for call in unet_calls([(run, half) for run in runs for half in run.halves], inputs):
            for (run, half), prediction in zip(call.rows, self._unet(call.tensors).split(1), strict=True):
                predictions[run][half] = prediction
        for run in runs:
            run.advance(predictions[run])

    @torch.inference_mode()
    def decode(self, runs: Runs) -> torch.Tensor:
        """Pictures uint8 [runs, H, W, 3] of runs of one size."""
        if self._vae is None:
            self._vae = self._checkpoint.load_vae(self._device, self._dtype)
        return decode_latents(self._vae, torch.cat([run.latents for run in runs]))

    def _encode(self, request: CompletedRequest, loras: LoraSet) -> Embeddings:
        """Embeddings as a shard has them from the text encoder's model."""
        text_set = tuple(item for item in loras if set(adapted_modules(self._path(item[0]))) != {UNET})
        negative, prompt = self._encoder.texts(request)
        found = self._encoder.encode([text for text in (negative, prompt) if text is not None], text_set)
        pair = [found[prompt].zeros() if negative is None else found[negative], found[prompt]]
        pooled = [embedding.pooled for embedding in pair if embedding.pooled is not None]
        return torch.stack([embedding.tokens for embedding in pair]), torch.stack(pooled) if pooled else None

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.safetensors"
