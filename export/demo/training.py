"""The whole recipe: tokenizer, text encoders, autoencoder, encoded training set, UNet, pipeline folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .checkpoints import Budget
from .decoder_training import train_decoder
from .latents import encode_pictures
from .pipeline import assemble
from .text_pretraining import train_text_encoders
from .tokenizer import write_tokenizer
from .unet_training import train_unet
from .vae_training import train_vae

log = logging.getLogger(__name__)

STAGES = ("text", "vae", "decoder", "latents", "unet")


@dataclass(frozen=True)
class Recipe:
    """How much of each stage; the defaults are those of the committed weights.

    Attributes:
        text_steps: optimiser steps of the text encoders.
        vae_steps: optimiser steps of the autoencoder.
        decoder_steps: optimiser steps of its decoder alone.
        pictures: in the UNet's training set.
        unet_steps: optimiser steps of the UNet.
        minutes: wall-clock limits by stage, for stages that have one; learning rates follow whichever ends first.
        seed: of everything.
    """

    text_steps: int = 1163
    vae_steps: int = 2816
    decoder_steps: int = 1298
    pictures: int = 20_000
    unet_steps: int = 7204
    minutes: dict[str, float] | None = None
    seed: int = 0


def train(out: Path, recipe: Recipe, device: str = "cpu", stages: tuple[str, ...] = STAGES, workers: int = 1) -> dict:
    """Trains the family and writes it as a diffusers folder.

    Every stage leaves its result and a report in ``out/work``; finished stages are skipped, an interrupted one goes on
    from its last checkpoint.

    Args:
        out: the pipeline's folder.
        recipe: how much of what.
        device: "cpu" or "cuda".
        stages: which to run; the pipeline is put together once all have finished.
        workers: threads that share the decoder's and the UNet's batches.

    Returns:
        Each finished stage's report: steps, seconds, figures.
    """
    work = out / "work"
    limits = recipe.minutes or {}
    tokenizer = write_tokenizer(work / "tokenizer")
    write_tokenizer(work / "tokenizer_2")

    def budget(stage: str, steps: int) -> Budget:
        return Budget(steps, limits.get(stage))

    run: dict[str, Callable[[], dict]] = {
        "text": lambda: train_text_encoders(tokenizer, work, budget("text", recipe.text_steps), recipe.seed, device),
        "vae": lambda: train_vae(work, budget("vae", recipe.vae_steps), recipe.seed, device),
        "decoder": lambda: train_decoder(work, budget("decoder", recipe.decoder_steps), recipe.seed, device, workers),
        "latents": lambda: encode_pictures(work, recipe.pictures, recipe.seed, device),
        "unet": lambda: train_unet(work, budget("unet", recipe.unet_steps), recipe.seed, device, workers),
    }
    for stage in STAGES:
        report = work / f"{stage}.json"
        if stage in stages and not report.exists():
            report.write_text(json.dumps(run[stage](), indent=2) + "\n")
            log.info("%s: %s", stage, report.read_text())
    reports = {path.stem: json.loads(path.read_text()) for stage in STAGES if (path := work / f"{stage}.json").exists()}
    if len(reports) == len(STAGES):
        assemble(work, out)
        (out / "training.json").write_text(json.dumps(reports, indent=2) + "\n")
    return reports
