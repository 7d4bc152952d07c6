"""Trains a ControlNet (Zhang et al. 2023): a copy of the UNet's encoder, whose outputs are added to it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from ..checkpoints import Budget, Checkpoint, ExponentialMovingAverage, warmup_cosine
from ..parallel import Replicas
from ..unet_training import NOISE_SCHEDULE, added_conditions, diffuse
from .controls import Kind
from .data import ControlledPictures

CONTROLNETS = Path(__file__).parents[1] / "controlnets"
"""The committed weights, a folder for each kind."""
EMBEDDING_CHANNELS = (16, 32, 64, 64)
"""Of the network that takes the control image in: one level more than halvings, so it reduces by the VAE's 8."""
EMBEDDING_GAIN = 1.8
"""Of its first weights, so that a control comes out about as large as the latents it is added to."""
BATCH_SIZE = 16
UNCONDITIONAL_SHARE = 0.15


@dataclass(frozen=True)
class Settings:
    """How a ControlNet is trained; the defaults are those of the committed weights.

    Attributes:
        steps: optimiser steps.
        learning_rate: the highest of the cosine.
        pictures: in the training set.
        seed: of everything.
        workers: threads that share the batch.
        save_every: steps from checkpoint to checkpoint.
    """

    steps: int = 2000
    learning_rate: float = 1e-3
    pictures: int = 6000
    seed: int = 0
    workers: int = 1
    save_every: int = 200


class ControlledUNet(nn.Module):
    """The UNet, frozen, with a ControlNet that learns.

    Args:
        unet: predicts velocity; changed in place: it needs no gradients any more.
        controlnet: made for it.
    """

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel) -> None:
        super().__init__()
        self.unet = unet.requires_grad_(False)
        self.controlnet = controlnet

    def forward(self, noisy: Tensor, timesteps: Tensor, embeddings: Tensor, pooled: Tensor, control: Tensor) -> Tensor:
        """Predicts the velocity, like ``noisy``; shapes as for :func:`controlled_loss`."""
        conditions = added_conditions(pooled)
        down, middle = self.controlnet(
            noisy, timesteps, embeddings, controlnet_cond=control, added_cond_kwargs=conditions, return_dict=False
        )
        return self.unet(
            noisy,
            timesteps,
            embeddings,
            added_cond_kwargs=conditions,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample


def controlled_loss(
    network: ControlledUNet,
    noisy: Tensor,
    timesteps: Tensor,
    embeddings: Tensor,
    pooled: Tensor,
    control: Tensor,
    velocity: Tensor,
) -> Tensor:
    """Mean squared error of the predicted velocity, in float32: not every CPU is quick at bfloat16.

    Args:
        network: predicts velocity.
        noisy: float32 [batch, 4, 16, 16].
        timesteps: int64 [batch].
        embeddings: float32 [batch, 77, 256].
        pooled: float32 [batch, 128].
        control: float32 [batch, 3, 128, 128], 0..1.
        velocity: what to predict, like ``noisy``.
    """
    return F.mse_loss(network(noisy, timesteps, embeddings, pooled, control), velocity)


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Makes a ControlNet from the UNet's weights; it changes nothing until it has learnt.

    The network that takes the control image in gets Gaussian weights, as in the paper. diffusers leaves it PyTorch's
    smaller ones, through whose layers thin lines all but vanish, and a last layer of zeros: with these, 400 steps of
    training still ignored the control. Zeros at the outputs are enough for a start that changes nothing.
    """
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=EMBEDDING_CHANNELS)
    for parameter in controlnet.controlnet_cond_embedding.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=EMBEDDING_GAIN / math.sqrt(parameter[0].numel()))
        else:
            nn.init.zeros_(parameter)
    return controlnet


def save_controlnet(controlnet: ControlNetModel, folder: Path) -> None:
    """Writes float16 weights; plain ``from_pretrained`` gives float32. The network itself becomes float16."""
    controlnet.half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def load_controlnet(kind: Kind, folder: Path = CONTROLNETS) -> ControlNetModel:
    """Loads a trained ControlNet in float32."""
    return ControlNetModel.from_pretrained(folder / kind).eval()


@sdpa_kernel(SDPBackend.MATH)  # faster on CPUs, as in unet_training
def train_controlnet(
    pipeline: StableDiffusionXLPipeline, kind: Kind, folder: Path, settings: Settings, go_on: bool = False
) -> dict:
    """Trains one ControlNet; the average of its weights is written to ``folder/kind``.

    Args:
        pipeline: the family; its UNet is frozen.
        kind: of control.
        folder: of the weights and of the checkpoint to resume from, ``KIND.checkpoint.pt``.
        settings: how long, how fast.
        go_on: resume from the checkpoint, if there is one, not from nothing.

    Returns:
        Steps, seconds (without the encoding of the training set), batch size, and the smoothed loss.
    """
    torch.manual_seed(settings.seed)
    controlnet = build_controlnet(pipeline.unet).train()
    optimizer = torch.optim.AdamW(
        controlnet.parameters(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    average = ExponentialMovingAverage(controlnet, decay=0.998)
    checkpoint, step, spent, smoothed = Checkpoint(folder / f"{kind}.checkpoint.pt"), 0, 0.0, None
    if go_on and (state := checkpoint.load()):
        controlnet.load_state_dict(state["controlnet"])
        optimizer.load_state_dict(state["optimizer"])
        average.average = state["average"]
        step, spent, smoothed = state["step"], state["seconds"], state["loss"]
    data = ControlledPictures(pipeline, kind, settings.pictures, settings.seed)
    budget = Budget(settings.steps, spent=spent)
    replicas = Replicas(ControlledUNet(pipeline.unet, controlnet), settings.workers)
    schedule = DDPMScheduler(**NOISE_SCHEDULE)

    def save() -> None:
        checkpoint.save(
            controlnet=controlnet.state_dict(),
            optimizer=optimizer.state_dict(),
            average=average.average,
            step=step,
            seconds=budget.seconds(),
            loss=smoothed,
        )

    bar = tqdm(total=settings.steps, initial=step, desc=kind, mininterval=10)
    while step < settings.steps:
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(budget.progress(step), settings.learning_rate)
        rng = np.random.default_rng([settings.seed, 10, step])
        batch = data.batch(rng, BATCH_SIZE, UNCONDITIONAL_SHARE)
        noisy, timesteps, velocity = diffuse(schedule, batch.latents, rng)
        loss = replicas.backward(
            controlled_loss, noisy, timesteps, batch.embeddings, batch.pooled, batch.control, velocity
        )
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), 1.0)
        optimizer.step()
        average.update(controlnet, step)
        smoothed = loss if smoothed is None else 0.99 * smoothed + 0.01 * loss
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{smoothed:.4f}", refresh=False)
        if step % settings.save_every == 0:
            save()
    save()
    bar.close()
    controlnet.load_state_dict(average.average)
    save_controlnet(controlnet, folder / kind)
    return {
        "steps": step,
        "seconds": round(budget.seconds()),
        "batch_size": BATCH_SIZE,
        "pictures": settings.pictures,
        "learning_rate": settings.learning_rate,
        "loss": round(smoothed or float("nan"), 4),
    }
