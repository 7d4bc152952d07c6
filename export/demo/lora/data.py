"""What a LoRA trains on: pictures in its style, encoded once, and their captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor
from tqdm.auto import tqdm

from ..captions import write_caption
from ..drawing import PLAIN_STYLE, Style, draw, sample_layout
from ..scenes import Scene, sample_scene
from ..text_pretraining import encode, tokenize
from ..vae_training import to_tensor

ENCODING_BATCH = 64


@dataclass(frozen=True)
class Captions:
    """Captions as the UNet reads them without a LoRA.

    Attributes:
        ids: int64 [captions, 77], the same for both text encoders: their tokenizers agree.
        embeddings: float16 [captions, 77, 256].
        pooled: float16 [captions, 128].
    """

    ids: Tensor
    embeddings: Tensor
    pooled: Tensor


@torch.no_grad()
def encode_captions(pipeline: StableDiffusionXLPipeline, texts: list[str]) -> Captions:
    """Encodes captions with the pipeline's text encoders."""
    ids = tokenize(pipeline.tokenizer, texts)
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    parts = [
        tuple(tensor.half() for tensor in encode(encoders, batch))
        for batch in tqdm(ids.split(ENCODING_BATCH), desc="captions", mininterval=5)
    ]
    embeddings, pooled = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Captions(ids, embeddings, pooled)


def scene_rng(seed: int, index: int) -> np.random.Generator:
    """The source of one training picture's scene, and then of its caption."""
    return np.random.default_rng([seed, 6, index])


def sample_captions(pictures: int, seed: int) -> list[str]:
    """Captions of the training pictures with this seed, in order; held-out arrangements are left out."""
    rngs = (scene_rng(seed, index) for index in range(pictures))
    return [write_caption(sample_scene(rng, held_out=False), rng).text for rng in rngs]


def sampled_scene(seed: int, index: int) -> Scene:
    """The scene that one of :func:`sample_captions` describes."""
    return sample_scene(scene_rng(seed, index), held_out=False)


@torch.no_grad()
def encode_drawings(pipeline: StableDiffusionXLPipeline, drawing: Callable[[int], np.ndarray], pictures: int) -> Tensor:
    """Encodes drawings, which are made as they are needed.

    Args:
        pipeline: its VAE encodes.
        drawing: gives one by its number, uint8 [128, 128, 3].
        pictures: how many.

    Returns:
        Latents, already times the scaling factor, float32 [pictures, 4, 16, 16].
    """
    latents = []
    for start in tqdm(range(0, pictures, ENCODING_BATCH), desc="pictures", mininterval=5):
        drawings = [drawing(index) for index in range(start, min(start + ENCODING_BATCH, pictures))]
        posterior = pipeline.vae.encode(to_tensor(np.stack(drawings))).latent_dist
        latents.append(posterior.mean * pipeline.vae.config.scaling_factor)
    return torch.cat(latents)


def encode_styled(pipeline: StableDiffusionXLPipeline, style: Style, pictures: int, seed: int) -> Tensor:
    """Draws the scenes of :func:`sample_captions` in a style and encodes them.

    Args:
        pipeline: its VAE encodes.
        style: how to draw; other styles give the same scenes and layouts.
        pictures: how many.
        seed: of scenes and layouts.

    Returns:
        Latents, already times the scaling factor, float32 [pictures, 4, 16, 16].
    """

    def drawing(index: int) -> np.ndarray:
        scene = sampled_scene(seed, index)
        return draw(scene, sample_layout(scene, np.random.default_rng([seed, 7, index])), style)

    return encode_drawings(pipeline, drawing, pictures)


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        latents: float32 [batch, 4, 16, 16].
        ids: int64 [batch, 77].
        embeddings: what the text encoders say without the LoRA, float32 [batch, 77, 256].
        pooled: the same, float32 [batch, 128].
        with_text: whether the LoRA's text encoders shall read the caption, bool [batch].
    """

    latents: Tensor
    ids: Tensor
    embeddings: Tensor
    pooled: Tensor
    with_text: Tensor


class StyledPictures:
    """The training set of one LoRA.

    Without a trigger every picture is in the style. With one, the style is bound to the trigger as the LoRA's text
    encoders read it: captions without it, and captions that the unchanged text encoders have read, go with plain
    pictures.

    Args:
        pipeline: encodes.
        style: of the LoRA.
        trigger: added to captions, or None.
        pictures: how many.
        seed: of scenes, layouts and captions.
    """

    WITHOUT_TRIGGER = 0.15
    WITHOUT_TEXT = 0.25

    def __init__(
        self, pipeline: StableDiffusionXLPipeline, style: Style, trigger: str | None, pictures: int, seed: int
    ) -> None:
        texts = sample_captions(pictures, seed)
        self.pictures = pictures
        self.trigger = trigger
        self.styled = encode_styled(pipeline, style, pictures, seed)
        if trigger is None:
            self.captions = encode_captions(pipeline, [*texts, ""])
        else:
            self.plain = encode_styled(pipeline, PLAIN_STYLE, pictures, seed)
            self.captions = encode_captions(pipeline, [*(f"{text}, {trigger}" for text in texts), *texts, ""])

    def batch(self, rng: np.random.Generator, size: int, unconditional_share: float) -> Batch:
        """Draws a random batch.

        Args:
            rng: chooses pictures and captions.
            size: of the batch.
            unconditional_share: how often the caption is the empty one; its picture is in the style all the same.
        """
        rows = rng.integers(self.pictures, size=size)
        captions = rows.copy()
        empty = rng.random(size) < unconditional_share
        with_text = np.ones(size, dtype=bool)
        latents = self.styled[rows]
        if self.trigger is not None:
            with_text = rng.random(size) >= self.WITHOUT_TEXT
            without_trigger = rng.random(size) < self.WITHOUT_TRIGGER
            captions[without_trigger] += self.pictures
            plain = torch.from_numpy(~with_text | (without_trigger & ~empty))
            latents[plain] = self.plain[rows][plain]
        captions[empty] = len(self.captions.ids) - 1
        return Batch(
            latents,
            self.captions.ids[captions],
            self.captions.embeddings[captions].float(),
            self.captions.pooled[captions].float(),
            torch.from_numpy(with_text),
        )
