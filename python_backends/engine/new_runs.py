"""Runs of requests that come to a shard, made of what their messages name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..request.completed import CompletedRequest
from .run import Denoising, LatentGeometry
from .starts import Start
from .unet_calls import unet_calls

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from ..networks.checkpoint import Checkpoint
    from ..networks.kept_embeddings import Embeddings, KeptEmbeddings
    from ..networks.kept_moments import KeptMoments
    from ..shared_memory.pictures import Pictures
    from .adapter_services import AdapterServices
    from .messages import Submit
    from .new_token_runs import TokenRuns


class NewRuns:
    """Makes the runs of one checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        scheduler_config: Mapping[str, Any],
        device: torch.device,
        embeddings: KeptEmbeddings,
        moments: KeptMoments,
        pictures: Pictures,
        adapters: AdapterServices,
        token_runs: TokenRuns,
        fp8: bool = False,
    ) -> None:
        """Reads the checkpoint's latents.

        Args:
            checkpoint: Whose UNet evaluates them.
            scheduler_config: `Checkpoint.scheduler_config`.
            device: Where that is.
            embeddings: Where messages' keys lie.
            moments: Likewise, of pictures.
            pictures: Likewise, of masks.
            adapters: For requests with LoRAs.
            token_runs: For mask-aware requests.
            fp8: Whether the UNet multiplies 8-bit floats.
        """
        self._scheduler_config = scheduler_config
        self._geometry = LatentGeometry(
            checkpoint.latent_channels, checkpoint.vae_scale_factor, checkpoint.guidance_embedding_width
        )
        self._scale = checkpoint.latent_scale
        self._device, self._adapters, self._token_runs = device, adapters, token_runs
        self._fp8 = fp8
        self._embeddings, self._moments, self._pictures = embeddings, moments, pictures
        pooled = None if checkpoint.pooled_width is None else torch.zeros(2, checkpoint.pooled_width)
        self._zeros: Embeddings = torch.zeros(2, *checkpoint.text_embedding_shape), pooled

    def warm_up(self, schedulers: Iterable[str]) -> None:
        """One step of every scheduler: what they import and build lazily must not cost the first request."""
        side = 8 * self._geometry.scale_factor
        for scheduler in (None, *schedulers):
            request = CompletedRequest("warm-up", "", None, 0, 2, 2.0, side, side, scheduler)
            run = Denoising(request, self._scheduler_config, self._geometry, self._zeros, device=self._device)
            (call,) = unet_calls([(run, half) for half in run.halves], {run: run.model_input()})
            run.advance(dict(zip(run.halves, call.tensors["LATENTS"].split(1), strict=True)))

    def make(self, message: Submit) -> Denoising:
        """A run at step 0, with what is there of its LoRAs.

        Raises:
            EvictedError: If its embeddings have gone, or its picture's moments.
            RequestError: If it cannot be run as it is asked for.
        """
        encoding = message.encoding
        embeddings = self._embeddings.pair(encoding.negative, encoding.prompt)
        start = self._start(message)
        loras = self._adapters.take_up(message.request, message.tickets, encoding.loras)
        try:
            run = Denoising(
                message.request,
                self._scheduler_config,
                self._geometry,
                embeddings,
                encoding,
                loras,
                self._device,
                start,
            )
            run.report.picture, run.report.fp8 = message.picture, self._fp8
            if start is not None:
                run.token_run = self._token_runs.make(message.request, start, run.timesteps)
            run.put_on_loras()
        except Exception:
            loras.close()
            raise
        return run

    def _start(self, message: Submit) -> Start | None:
        """The picture that a run begins with."""
        edit, keys = message.request.edit, message.picture
        if edit is None:
            return None
        cell = self._geometry.scale_factor
        mask = None if edit.mask is None else self._pictures.get(edit.mask)[::cell, ::cell]
        return Start(
            scale=self._scale,
            skipped=edit.skipped,
            picture=None if keys.picture is None else self._moments.get(keys.picture),
            mask=None if mask is None else torch.from_numpy(mask.astype("float32"))[None, None],
            masked=None if keys.masked is None else self._moments.get(keys.masked),
            from_noise=edit.starts_from_noise,
        )
