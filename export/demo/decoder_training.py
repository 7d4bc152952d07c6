"""Stage 3: the VAE's decoder alone, sharpened on whole pictures while the latent space stays what it is.

The encoder is frozen, so latents, and with them the UNet's training, do not change. The latents get a little noise:
what the UNet makes will not be exact either.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm.auto import tqdm

from .checkpoints import Budget, Checkpoint, ExponentialMovingAverage, warmup_cosine
from .drawing import PLAIN_STYLE, draw, sample_layout
from .parallel import Replicas
from .scenes import sample_scene
from .vae_training import SCALING_FACTOR, reconstruction_error, reconstruction_loss, sample_style, to_tensor

BATCH_SIZE = 8
LEARNING_RATE = 1e-3
LATENT_NOISE = 0.03
"""Deviation of the noise, where the latents' own is 1."""
OWN_STYLE_SHARE = 0.5


class _Decoder(nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))


def decoder_loss(decoder: nn.Module, latents: Tensor, pictures: Tensor) -> Tensor:
    """Reconstruction loss of decoded latents; the decoder runs in bfloat16.

    Args:
        decoder: latents to pictures.
        latents: float32 [batch, 4, 16, 16].
        pictures: float32 [batch, 3, 128, 128], -1..1.
    """
    with torch.autocast(latents.device.type, torch.bfloat16):
        decoded = decoder(latents)
    return reconstruction_loss(decoded.float(), pictures)


def train_decoder(folder: Path, budget: Budget, seed: int, device: str = "cpu", workers: int = 1) -> dict:
    """Trains the decoder of ``folder/vae`` and writes it back.

    Args:
        folder: holds the autoencoder; the stage's checkpoint goes there.
        budget: steps and minutes.
        seed: of pictures and noise.
        device: where to train.
        workers: threads that each take a share of the batch, one core each.

    Returns:
        Steps and seconds used, and the mean absolute error on fresh pictures in the family's own style, 0..255.
    """
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device)
    decoder = _Decoder(vae).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), LEARNING_RATE, weight_decay=1e-3, fused=True)
    average = ExponentialMovingAverage(decoder, decay=0.995)
    checkpoint, step = Checkpoint(folder / "decoder.checkpoint.pt"), 0
    if state := checkpoint.load():
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        average.average = state["average"]
        step, budget.spent = state["step"], state["seconds"]
    replicas = Replicas(decoder, workers)
    bar = tqdm(total=budget.steps, initial=step, desc="decoder", mininterval=5)
    while budget.progress(step) < 1:
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(budget.progress(step), LEARNING_RATE)
        rng = np.random.default_rng([seed, 6, step])
        pictures = _pictures(rng).to(device)
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.mean
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(device)
        latents += LATENT_NOISE / SCALING_FACTOR * noise
        loss = replicas.backward(decoder_loss, latents, pictures)
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        average.update(decoder, step)
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if step % 250 == 0:
            checkpoint.save(
                decoder=decoder.state_dict(),
                optimizer=optimizer.state_dict(),
                average=average.average,
                step=step,
                seconds=budget.seconds(),
            )
    bar.close()
    decoder.load_state_dict(average.average)
    vae.eval().cpu().save_pretrained(folder / "vae")
    error = reconstruction_error(vae, seed)
    return {"steps": step, "seconds": round(budget.seconds()), "mean_absolute_error": round(error, 3)}


def _pictures(rng: np.random.Generator) -> Tensor:
    pictures = []
    for _ in range(BATCH_SIZE):
        scene = sample_scene(rng)
        style = PLAIN_STYLE if rng.random() < OWN_STYLE_SHARE else sample_style(rng)
        pictures.append(draw(scene, sample_layout(scene, rng), style))
    return to_tensor(np.stack(pictures))
