"""Pictures with LoRAs as diffusers draws them, to compare a server's with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

import lora_files
from weighted_prompts import Words, arguments
from wire import PROMPT, Loras


class Oracle:
    """diffusers' pipeline with dense deltas added to its weights, which are the tests' own."""

    def __init__(self, server: Any, made: Mapping[str, lora_files.MadeLora]) -> None:
        self._pipeline: Any = DiffusionPipeline.from_pretrained(server.checkpoint, dtype=torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)
        if server.model == "sd15":  # for `clip_skip` diffusers 0.42 looks there, where these transformers have it not
            vars(self._pipeline.text_encoder).setdefault("text_model", self._pipeline.text_encoder)
        self._deltas = {name: lora.deltas for name, lora in made.items()}
        self._weights = {
            (part, name): (weight, weight.detach().clone())
            for (part, name), weight in lora_files.adaptable(
                {
                    part: getattr(self._pipeline, part)
                    for part in ("unet", "text_encoder", "text_encoder_2")
                    if getattr(self._pipeline, part, None) is not None
                }
            ).items()
        }

    def knows(self, name: str, made: lora_files.MadeLora) -> None:
        """Takes up another LoRA."""
        self._deltas[name] = made.deltas

    def picture(
        self, loras: Loras, switch_at: int = 0, steps: int = 4, chunks: list[Words] | None = None, **options: Any
    ) -> np.ndarray:
        """uint8 [H, W, 3]; the UNet's deltas are added before step `switch_at`, and with 0 the text encoders' too.

        For chunks of a prompt beside the negative one `blurry`.
        """
        self._fuse(loras if switch_at == 0 else [])

        def switch(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step + 1 == switch_at:
                self._fuse(loras)
            return tensors

        given = {"prompt": PROMPT, "guidance_scale": 5.0, "generator": torch.Generator("cpu").manual_seed(7), **options}
        if chunks is not None:
            given |= {"prompt": None, **arguments(self._pipeline, chunks)}
        picture = self._pipeline(
            num_inference_steps=steps, output_type="np", callback_on_step_end=switch, **given
        ).images[0]
        self._fuse([])
        return np.round(picture * 255)

    @torch.no_grad()
    def _fuse(self, loras: Loras) -> None:
        for place, (weight, original) in self._weights.items():
            total = original.double()
            for name, scale in loras:
                delta = self._deltas[name].get(place)
                if delta is not None:
                    total = total + scale * delta.reshape(total.shape)
            weight.copy_(total)
