"""Stage 4: everything the UNet trains on, encoded once: latents of pictures and embeddings of their captions.

The arrays are written as plain .npy files and read as memory maps, so the UNet's training does no VAE and no CLIP work.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .captions import write_caption
from .drawing import SIZE, draw_random
from .scenes import sample_scene
from .text_pretraining import HIDDEN_SIZES, PROJECTION_SIZE, encode, tokenize
from .tokenizer import MAX_TOKENS
from .vae_training import to_tensor

CAPTIONS_PER_PICTURE = 2
BATCH_SIZE = 64
_NAMES = ("latents", "embeddings", "pooled")


@dataclass(frozen=True)
class Batch:
    """One training batch, float32.

    Attributes:
        latents: [batch, 4, 16, 16], already times the scaling factor.
        embeddings: [batch, 77, 256].
        pooled: [batch, 128].
    """

    latents: Tensor
    embeddings: Tensor
    pooled: Tensor


class EncodedPictures:
    """The encoded training set, read from memory maps.

    Args:
        folder: where :func:`encode_pictures` wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.latents, self.embeddings, self.pooled = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in _NAMES)

    def __len__(self) -> int:
        return len(self.latents) - 1

    def batch(self, rng: np.random.Generator, size: int, unconditional_share: float) -> Batch:
        """Draws a random batch.

        Args:
            rng: chooses pictures, captions, and where the caption is dropped.
            size: of the batch.
            unconditional_share: how often the caption is replaced by the empty one (stored as the last row).
        """
        rows = rng.integers(len(self), size=size)
        captions = rows * CAPTIONS_PER_PICTURE + rng.integers(CAPTIONS_PER_PICTURE, size=size)
        captions[rng.random(size) < unconditional_share] = len(self.embeddings) - 1
        arrays = (self.latents[rows], self.embeddings[captions], self.pooled[captions])
        return Batch(*(torch.from_numpy(array.astype(np.float32)) for array in arrays))


@torch.no_grad()
def encode_pictures(folder: Path, pictures: int, seed: int, device: str = "cpu") -> dict:
    """Draws, captions and encodes the training set of the UNet; held-out arrangements are left out.

    Args:
        folder: holds the trained tokenizer, text encoders and VAE; the arrays are written there.
        pictures: how many.
        seed: of scenes, layouts and captions.
        device: where to encode.

    Returns:
        The number of pictures and captions. The arrays end with a row for the empty caption (its picture is blank).
    """
    done = folder / "latents.json"
    if done.exists():
        return json.loads(done.read_text())
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoders = (
        CLIPTextModel.from_pretrained(folder / "text_encoder").to(device).eval(),
        CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2").to(device).eval(),
    )
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device).eval()
    count = pictures * CAPTIONS_PER_PICTURE + 1
    side = SIZE // 8
    shapes = ((pictures + 1, 4, side, side), (count, MAX_TOKENS, sum(HIDDEN_SIZES)), (count, PROJECTION_SIZE))
    latents, embeddings, pooled = (
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, shape)
        for name, shape in zip(_NAMES, shapes, strict=True)
    )

    def store_captions(start: int, texts: list[str]) -> None:
        states, projections = encode(encoders, tokenize(tokenizer, texts).to(device))
        embeddings[start : start + len(texts)] = states.cpu().half().numpy()
        pooled[start : start + len(texts)] = projections.cpu().half().numpy()

    for start in tqdm(range(0, pictures, BATCH_SIZE), desc="latents", mininterval=5):
        rng = np.random.default_rng([seed, 4, start])
        scenes = [sample_scene(rng, held_out=False) for _ in range(min(BATCH_SIZE, pictures - start))]
        images = to_tensor(np.stack([draw_random(scene, rng) for scene in scenes])).to(device)
        means = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        latents[start : start + len(scenes)] = means.cpu().half().numpy()
        texts = [write_caption(scene, rng).text for scene in scenes for _ in range(CAPTIONS_PER_PICTURE)]
        store_captions(start * CAPTIONS_PER_PICTURE, texts)
    store_captions(count - 1, [""])
    for array in (latents, embeddings, pooled):
        array.flush()
    report = {"pictures": pictures, "captions": count - 1}
    done.write_text(json.dumps(report))
    return report
