"""Stage 5: the UNet, trained to predict v (Salimans and Ho 2022) under a noise schedule with zero terminal SNR.

With zero terminal SNR (Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed") the first step
of sampling starts from pure noise in training too, so the model itself decides the mean of the picture: flat
backgrounds and colours come out as asked for.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from .checkpoints import Budget, Checkpoint, ExponentialMovingAverage, warmup_cosine
from .drawing import SIZE
from .latents import EncodedPictures
from .parallel import Replicas
from .text_pretraining import HIDDEN_SIZES, PROJECTION_SIZE

log = logging.getLogger(__name__)

TIME_IDS = (SIZE, SIZE, 0, 0, SIZE, SIZE)
"""SDXL's micro-conditioning (original size, crop corner, target size): always a whole 128 x 128 picture."""
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
"""Configuration of the noise schedule; every sampler of the family is made from it."""

BATCH_SIZE = 48
LEARNING_RATE = 1e-3
UNCONDITIONAL_SHARE = 0.1
TIME_EMBEDDING_SIZE = 32
CHECKPOINT_EVERY = 250


def build_unet() -> UNet2DConditionModel:
    """Makes the UNet with fresh weights: SDXL's blocks and embeddings, 11 M parameters, float32."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(2, 4, 6),
        cross_attention_dim=sum(HIDDEN_SIZES),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_EMBEDDING_SIZE,
        projection_class_embeddings_input_dim=TIME_EMBEDDING_SIZE * len(TIME_IDS) + PROJECTION_SIZE,
        norm_num_groups=8,
    )


def stratified_timesteps(rng: np.random.Generator, count: int, steps: int = 1000) -> Tensor:
    """Uniform timesteps, one from each of ``count`` equal intervals: int64 [count] in random order."""
    timesteps = (np.arange(count) + rng.random(count)) / count * steps
    return torch.from_numpy(rng.permutation(timesteps.astype(np.int64)))


def diffuse(schedule: DDPMScheduler, latents: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Adds noise to a batch at stratified timesteps.

    Args:
        schedule: of the noise.
        latents: float32 [batch, 4, 16, 16].
        rng: of timesteps and noise.

    Returns:
        Noisy latents; timesteps, int64 [batch]; the velocity to predict, like ``latents``.
    """
    timesteps = stratified_timesteps(rng, len(latents))
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    return schedule.add_noise(latents, noise, timesteps), timesteps, schedule.get_velocity(latents, noise, timesteps)


def added_conditions(pooled: Tensor) -> dict[str, Tensor]:
    """What SDXL's networks take beside the tokens: ``pooled`` [batch, 128], and the size that all pictures have."""
    time_ids = torch.tensor([TIME_IDS], dtype=torch.float32, device=pooled.device).repeat(len(pooled), 1)
    return {"text_embeds": pooled, "time_ids": time_ids}


def velocity_loss(
    unet: torch.nn.Module, noisy: Tensor, timesteps: Tensor, embeddings: Tensor, pooled: Tensor, velocity: Tensor
) -> Tensor:
    """Mean squared error of the predicted velocity; the network runs in bfloat16.

    Args:
        unet: predicts velocity.
        noisy: float32 [batch, 4, 16, 16].
        timesteps: int64 [batch].
        embeddings: float32 [batch, 77, 256].
        pooled: float32 [batch, 128].
        velocity: what to predict, like ``noisy``.
    """
    with torch.autocast(noisy.device.type, torch.bfloat16):
        predicted = unet(noisy, timesteps, embeddings, added_cond_kwargs=added_conditions(pooled)).sample
    return F.mse_loss(predicted.float(), velocity)


@sdpa_kernel(SDPBackend.MATH)  # on CPUs, with so few tokens, a quarter faster per step than the fused kernel
def train_unet(folder: Path, budget: Budget, seed: int, device: str = "cpu", workers: int = 1) -> dict:
    """Trains the UNet; the average of its weights is written to ``folder/unet``.

    Args:
        folder: holds the encoded pictures; the UNet and the stage's checkpoint go there.
        budget: steps and minutes.
        seed: of weights, batches and noise.
        device: where to train.
        workers: threads that each take a share of the batch, one core each.

    Returns:
        Steps and seconds used, the batch size, and the loss averaged over the last 200 steps.
    """
    torch.manual_seed(seed)
    unet = build_unet().to(device).train()
    optimizer = torch.optim.AdamW(unet.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = ExponentialMovingAverage(unet, decay=0.999)
    checkpoint, step = Checkpoint(folder / "unet.checkpoint.pt"), 0
    if state := checkpoint.load():
        unet.load_state_dict(state["unet"])
        optimizer.load_state_dict(state["optimizer"])
        average.average = state["average"]
        step, budget.spent = state["step"], state["seconds"]
    data = EncodedPictures(folder)
    schedule = DDPMScheduler(**NOISE_SCHEDULE)
    replicas = Replicas(unet, workers)
    smoothed = None

    def save() -> None:
        checkpoint.save(
            unet=unet.state_dict(),
            optimizer=optimizer.state_dict(),
            average=average.average,
            step=step,
            seconds=budget.seconds(),
        )

    bar = tqdm(total=budget.steps, initial=step, desc="unet", mininterval=10)
    while budget.progress(step) < 1:
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(budget.progress(step), LEARNING_RATE)
        rng = np.random.default_rng([seed, 5, step])
        batch = data.batch(rng, BATCH_SIZE, UNCONDITIONAL_SHARE)
        noisy, timesteps, velocity = diffuse(schedule, batch.latents, rng)
        tensors = (noisy, timesteps, batch.embeddings, batch.pooled, velocity)
        loss = replicas.backward(velocity_loss, *(tensor.to(device) for tensor in tensors))
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.update(unet, step)
        smoothed = loss if smoothed is None else 0.995 * smoothed + 0.005 * loss
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{smoothed:.4f}", refresh=False)
        if step % CHECKPOINT_EVERY == 0:
            save()
    save()
    bar.close()
    unet.load_state_dict(average.average)
    unet.eval().cpu().save_pretrained(folder / "unet")
    return {
        "steps": step,
        "seconds": round(budget.seconds()),
        "batch_size": BATCH_SIZE,
        "loss": round(smoothed or float("nan"), 4),
    }
