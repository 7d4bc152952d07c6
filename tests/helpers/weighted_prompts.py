"""Embeddings of weighted prompts, computed from diffusers' embeddings of each chunk's words."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline

Words = list[tuple[str, float]]
"""A chunk's texts and their weights."""


@torch.no_grad()
def embeddings(
    pipeline: DiffusionPipeline, chunks: list[Words], clip_skip: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """[1, chunks × 77, width] and SDXL's pooled [1, width]: of the first chunk, without weights.

    What A1111 does, for the states of each encoder by itself: times the weight, then with the chunk's mean as before.
    """
    encoders = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
    widths = [encoder.config.hidden_size for encoder in encoders if encoder is not None]
    parts, pooled = [], None
    for words in chunks:
        weights = [1.0]
        for text, weight in words:
            weights += [weight] * len(pipeline.tokenizer(text, add_special_tokens=False).input_ids)
        encoded = pipeline.encode_prompt(
            prompt=" ".join(text for text, _ in words),
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            clip_skip=clip_skip,
        )
        states = encoded[0][0].double().split(widths, dim=-1)
        for own in states:
            mean = own.mean()
            for position, weight in enumerate(weights):
                own[position] *= weight
            if any(weight != 1 for weight in weights):
                own *= mean / own.mean()
        parts.append(torch.cat(states, dim=-1))
        if pooled is None and len(encoded) == 4:
            pooled = encoded[2]
    return torch.cat(parts)[None].float(), pooled


def arguments(pipeline: DiffusionPipeline, chunks: list[Words]) -> dict[str, torch.Tensor]:
    """What its pipeline takes for a prompt, beside the negative prompt `blurry` of as many chunks."""
    filled: list[Words] = [[("blurry", 1.0)], *[[("", 1.0)] for _ in chunks[1:]]]
    made = {}
    for prefix, parts in (("", chunks), ("negative_", filled)):
        tokens, pooled = embeddings(pipeline, parts)
        made[f"{prefix}prompt_embeds"] = tokens
        if pooled is not None:
            made[f"{prefix}pooled_prompt_embeds"] = pooled
    return made
