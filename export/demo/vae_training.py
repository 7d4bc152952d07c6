"""Stage 2: the AutoencoderKL, trained on pictures of the demo's world in many styles.

Two thirds of the budget go to 64 x 64 crops, the rest to whole pictures, so that attention and group norms meet the
sizes at which they are used. Afterwards the latents' per-channel mean and deviation are folded into the
(post-)quantisation convolutions: with SDXL's own scaling factor, 0.13025, every latent channel has mean 0 and
deviation 1.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm.auto import tqdm

from .checkpoints import Budget, Checkpoint, ExponentialMovingAverage, warmup_cosine
from .drawing import PLAIN_STYLE, Style, draw, sample_layout
from .scenes import sample_scene
from .vae_initialisation import start_as_mean_pooling

log = logging.getLogger(__name__)

SCALING_FACTOR = 0.13025
CROP = 64
CROP_SHARE = 0.65
BATCH_SIZE = 16
LEARNING_RATE = 2e-3
KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.5
SQUARE_WEIGHT = 2.0


def build_vae() -> AutoencoderKL:
    """Makes the autoencoder with fresh weights: factor 8, 4 latent channels, 1 M parameters, float32.

    Norms have one group: groups of a few channels would divide the colour out of a flat picture.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=128,
        scaling_factor=SCALING_FACTOR,
        force_upcast=False,
    )
    start_as_mean_pooling(vae)
    return vae


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [batch, height, width, 3] to float32 [batch, 3, height, width] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(tensor: Tensor) -> np.ndarray:
    """The inverse of :func:`to_tensor`; values out of range are clipped."""
    return ((tensor.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def sample_style(rng: np.random.Generator) -> Style:
    """Half of the time the family's own style, else any: LoRAs teach the UNet styles that the VAE must know already."""
    if rng.random() < 0.5:
        return PLAIN_STYLE
    fills: tuple[Literal["solid", "outline", "hatched"], ...] = ("solid", "outline", "hatched")
    matrix = np.eye(3) if rng.random() < 0.5 else rng.dirichlet((0.5, 0.5, 0.5), size=3)
    return Style(
        fill=fills[rng.integers(3)],
        line_width=float(rng.uniform(3, 6)),
        gradient=float(rng.uniform(-0.7, 0.7)) if rng.random() < 0.5 else 0.0,
        colour_matrix=tuple(tuple(row) for row in matrix),
    )


def training_batch(rng: np.random.Generator, crop: bool) -> Tensor:
    """A batch of pictures, float32 in -1..1: 16 crops [16, 3, 64, 64] or 4 whole ones [4, 3, 128, 128]."""
    pictures = []
    for _ in range(BATCH_SIZE // 2 if crop else BATCH_SIZE // 4):
        scene = sample_scene(rng)
        pictures.append(draw(scene, sample_layout(scene, rng), sample_style(rng)))
    if crop:
        corners = rng.integers(0, pictures[0].shape[0] - CROP + 1, size=(BATCH_SIZE, 2))
        pictures = [pictures[i // 2][y : y + CROP, x : x + CROP] for i, (y, x) in enumerate(corners)]
    return to_tensor(np.stack(pictures))


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 of the values and of their horizontal and vertical differences, and squared error, which colours need most."""
    edges = sum(F.l1_loss(output.diff(dim=dim), target.diff(dim=dim)) for dim in (2, 3))
    return F.l1_loss(output, target) + EDGE_WEIGHT * edges + SQUARE_WEIGHT * F.mse_loss(output, target)


def train_vae(folder: Path, budget: Budget, seed: int, device: str = "cpu") -> dict:
    """Trains the autoencoder and writes it to ``folder/vae``.

    Args:
        folder: where the autoencoder and the stage's checkpoint go.
        budget: steps and minutes.
        seed: of weights and pictures.
        device: where to train.

    Returns:
        Steps and seconds used, and the mean absolute error on fresh pictures in the family's own style, 0..255.
    """
    torch.manual_seed(seed)
    vae = build_vae().to(device).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, weight_decay=1e-3, fused=True)
    average = ExponentialMovingAverage(vae, decay=0.998)
    checkpoint, step = Checkpoint(folder / "vae.checkpoint.pt"), 0
    if state := checkpoint.load():
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average.average = state["average"]
        step, budget.spent = state["step"], state["seconds"]
    bar = tqdm(total=budget.steps, initial=step, desc="vae", mininterval=5)
    while budget.progress(step) < 1:
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(budget.progress(step), LEARNING_RATE)
        crop = budget.progress(step) < CROP_SHARE
        pictures = training_batch(np.random.default_rng([seed, 1, step]), crop).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            posterior = vae.encode(pictures).latent_dist
            output = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction_loss(output.float(), pictures)
        optimizer.zero_grad()
        (loss + KL_WEIGHT * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae, step)
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.4f}", kl=f"{kl.item():.2f}", refresh=False)
        if step % 250 == 0:
            checkpoint.save(
                vae=vae.state_dict(),
                optimizer=optimizer.state_dict(),
                average=average.average,
                step=step,
                seconds=budget.seconds(),
            )
    bar.close()
    vae.load_state_dict(average.average)
    vae.eval().cpu()
    normalise_latents(vae, seed)
    vae.save_pretrained(folder / "vae")
    error = reconstruction_error(vae, seed)
    return {"steps": step, "seconds": round(budget.seconds()), "mean_absolute_error": round(error, 3)}


def _own_style_batch(seed: int, stream: int, count: int) -> Tensor:
    rng = np.random.default_rng([seed, stream])
    scenes = [sample_scene(rng) for _ in range(count)]
    return to_tensor(np.stack([draw(scene, sample_layout(scene, rng)) for scene in scenes]))


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, seed: int, pictures: int = 256) -> None:
    """Rescales the latent space so that latents times the scaling factor have mean 0 and deviation 1 per channel.

    Changes ``quant_conv`` and ``post_quant_conv`` only; reconstructions stay what they were.

    Args:
        vae: changed in place.
        seed: of the pictures that the statistics are taken from.
        pictures: how many.
    """
    batches = _own_style_batch(seed, 2, pictures).split(16)
    means = torch.cat([vae.encode(batch).latent_dist.mean for batch in batches])
    shift, deviation = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    factor = 1 / (deviation * SCALING_FACTOR)
    channels = len(factor)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] *= factor[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - shift) * factor
    quant.bias[channels:] += 2 * factor.log()
    post.bias += post.weight[:, :, 0, 0] @ shift
    post.weight /= factor[None, :, None, None]


@torch.no_grad()
def reconstruction_error(vae: AutoencoderKL, seed: int, pictures: int = 64) -> float:
    """Mean absolute error of reconstructions of fresh pictures, in units of 0..255."""
    errors = []
    for batch in _own_style_batch(seed, 3, pictures).split(16):
        output = vae.decode(vae.encode(batch).latent_dist.mean).sample
        errors.append(np.abs(to_pictures(output).astype(float) - to_pictures(batch)).mean())
    return float(np.mean(errors))
