"""Trains a LoRA: PEFT's adapters on the frozen UNet, and on the text encoders where the recipe says so."""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from ..checkpoints import warmup_cosine
from ..parallel import Replicas
from ..text_pretraining import encode
from ..unet_training import NOISE_SCHEDULE, UNCONDITIONAL_SHARE, added_conditions, diffuse
from .data import StyledPictures
from .factors import PARTS, Factors, LoraWeights, resized
from .recipes import CONVOLUTIONS, TEXT, Recipe

BATCH_SIZE = 12
PICTURES = 1500


class Trainee(nn.Module):
    """The pipeline's networks with a LoRA's factors in them; only these learn.

    Args:
        pipeline: gives the networks, which are changed in place.
        configs: PEFT's configuration of each part that the LoRA changes.
        start: factors to go on from; None for fresh ones, which change nothing yet.
    """

    def __init__(
        self, pipeline: StableDiffusionXLPipeline, configs: dict[str, LoraConfig], start: LoraWeights | None = None
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder = pipeline.unet, pipeline.text_encoder
        self.text_encoder_2 = pipeline.text_encoder_2
        self.configs = configs
        for part in PARTS:
            network = getattr(self, part)
            network.requires_grad_(False)
            if part in configs:
                network.add_adapter(configs[part])
        for (part, module), factors in start.factors.items() if start else ():
            layer = getattr(self, part).get_submodule(module)
            layer.lora_A["default"].weight.data.copy_(factors.down)
            layer.lora_B["default"].weight.data.copy_(factors.up)
        self.unet.train()

    def weights(self) -> LoraWeights:
        """The factors, float32, named by part and module."""
        found: dict[tuple[str, str], Factors] = {}
        for part in self.configs:
            network = getattr(self, part)
            state = get_peft_model_state_dict(network)
            for name in (key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")):
                down, up = (state[f"{name}.lora_{factor}.weight"].detach().clone() for factor in "AB")
                scaling = network.get_submodule(name).scaling["default"]
                found[part, name] = Factors(down, up, scaling * len(down))
        return LoraWeights(found)


def fresh_configs(recipe: Recipe) -> dict[str, LoraConfig]:
    """PEFT's configurations of a recipe's parts; convolutions have a rank of their own, alpha in proportion."""
    scale = recipe.alpha / recipe.rank
    convolutions = [name for name in recipe.targets if name in CONVOLUTIONS]
    unet = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]
        target_modules=list(recipe.targets),
        rank_pattern=dict.fromkeys(convolutions, recipe.convolution_rank),
        alpha_pattern=dict.fromkeys(convolutions, scale * recipe.convolution_rank),
    )
    if not recipe.text_rank:
        return {"unet": unet}
    text = LoraConfig(r=recipe.text_rank, lora_alpha=scale * recipe.text_rank, target_modules=list(TEXT))  # type: ignore[arg-type]
    return {"unet": unet, "text_encoder": text, "text_encoder_2": text}


def configs_of(weights: LoraWeights) -> dict[str, LoraConfig]:
    """PEFT's configurations for factors that are there already, each module with its own rank and alpha."""
    configs = {}
    for part in sorted({part for part, _ in weights.factors}):
        modules = {module: factors for (own, module), factors in weights.factors.items() if own == part}
        configs[part] = LoraConfig(
            target_modules=list(modules),
            rank_pattern={module: factors.rank for module, factors in modules.items()},
            alpha_pattern={module: factors.alpha for module, factors in modules.items()},
        )
    return configs


def styled_loss(
    trainee: Trainee,
    noisy: Tensor,
    timesteps: Tensor,
    ids: Tensor,
    embeddings: Tensor,
    pooled: Tensor,
    with_text: Tensor,
    velocity: Tensor,
) -> Tensor:
    """Mean squared error of the predicted velocity, in float32: not every CPU is quick at bfloat16.

    Captions marked by ``with_text`` are read by the text encoders in training.

    Args:
        trainee: the networks.
        noisy: float32 [batch, 4, 16, 16].
        timesteps: int64 [batch].
        ids: int64 [batch, 77].
        embeddings: of the unchanged text encoders, float32 [batch, 77, 256].
        pooled: of the unchanged second text encoder, float32 [batch, 128].
        with_text: bool [batch].
        velocity: what to predict, like ``noisy``.
    """
    if "text_encoder" in trainee.configs and with_text.any():
        states, projections = encode((trainee.text_encoder, trainee.text_encoder_2), ids[with_text])
        embeddings, pooled = embeddings.clone(), pooled.clone()
        embeddings[with_text], pooled[with_text] = states, projections
    conditions = added_conditions(pooled)
    return F.mse_loss(trainee.unet(noisy, timesteps, embeddings, added_cond_kwargs=conditions).sample, velocity)


def train_lora(
    pipeline: StableDiffusionXLPipeline,
    recipe: Recipe,
    seed: int = 0,
    workers: int = 1,
    pictures: int = PICTURES,
    start: LoraWeights | None = None,
) -> tuple[LoraWeights, dict]:
    """Trains one LoRA; a recipe that resizes it lets the smaller factors settle in a second, shorter training.

    Args:
        pipeline: the family in float32, left as it was.
        recipe: what to train.
        seed: of factors, pictures, batches and noise.
        workers: threads that share the batch.
        pictures: size of the training set.
        start: factors to go on from, with the ranks and alphas that they have, instead of fresh ones.

    Returns:
        The LoRA's factors, and steps, seconds (without the encoding of the training set) and smoothed loss.
    """
    torch.manual_seed(seed)
    data = StyledPictures(pipeline, recipe.style, recipe.trigger, pictures, seed)
    configs = fresh_configs(recipe) if start is None else configs_of(start)
    trainee = Trainee(_copied(pipeline), configs, start)
    figures = fit(trainee, data, recipe.name, recipe.steps, recipe.learning_rate, seed, workers)
    weights = trainee.weights()
    if recipe.kept_energy is None or start is not None:
        return weights, figures
    kept = recipe.kept_energy
    weights = LoraWeights({key: resized(factors, kept) for key, factors in weights.factors.items()})
    trainee = Trainee(_copied(pipeline), configs_of(weights), weights)
    settled = fit(trainee, data, recipe.name, recipe.settling_steps, recipe.learning_rate / 2, seed + 1, workers)
    return trainee.weights(), figures | {"after_resizing": settled}


def _copied(pipeline: StableDiffusionXLPipeline) -> StableDiffusionXLPipeline:
    """A pipeline with networks of its own."""
    return type(pipeline).from_pipe(pipeline, **{part: copy.deepcopy(getattr(pipeline, part)) for part in PARTS})


@sdpa_kernel(SDPBackend.MATH)  # faster on CPUs, as in unet_training
def fit(
    trainee: Trainee, data: StyledPictures, name: str, steps: int, learning_rate: float, seed: int, workers: int
) -> dict:
    """Trains the factors in place.

    Args:
        trainee: the networks.
        data: the training set.
        name: shown beside the progress.
        steps: optimiser steps.
        learning_rate: the highest of the cosine.
        seed: of batches and noise.
        workers: threads that share the batch.

    Returns:
        Steps, seconds and smoothed loss.
    """
    learning = [parameter for parameter in trainee.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    schedule = DDPMScheduler(**NOISE_SCHEDULE)
    replicas = Replicas(trainee, workers)
    started, smoothed = time.monotonic(), float("nan")
    bar = tqdm(range(steps), desc=name, mininterval=10)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step / steps, learning_rate)
        rng = np.random.default_rng([seed, 8, step])
        batch = data.batch(rng, BATCH_SIZE, UNCONDITIONAL_SHARE)
        noisy, timesteps, velocity = diffuse(schedule, batch.latents, rng)
        tensors = (noisy, timesteps, batch.ids, batch.embeddings, batch.pooled, batch.with_text, velocity)
        loss = replicas.backward(styled_loss, *tensors)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        smoothed = loss if step == 0 else 0.98 * smoothed + 0.02 * loss
        bar.set_postfix(loss=f"{smoothed:.4f}", refresh=False)
    return {"steps": steps, "seconds": round(time.monotonic() - started), "loss": round(smoothed, 4)}
