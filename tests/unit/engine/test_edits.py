"""Runs that begin with a picture equal diffusers' image-to-image and inpainting pipelines, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from edits import LocalEdits, box, expected, oracle, picture
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

SIZE = (32, 48)
STEPS = 10
PLAIN, INPAINTING = False, True


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], LocalEdits]:
    """Of a family, of a UNet that takes a mask or of one that does not."""

    def make(family: str, inpaints: bool) -> LocalEdits:
        directory = tmp_path_factory.mktemp(family)
        return LocalEdits(Checkpoint(getattr(checkpoints, family)(directory, depth=2, inpaints=inpaints)))

    return cache(make)


def largest_difference(edits: LocalEdits, scheduler: str | None, **fields: Any) -> float:
    """Of latents from diffusers'."""
    given = {name: fields[name] for name in ("INIT_IMAGE", "MASK_IMAGE") if name in fields}
    named = {} if scheduler is None else {"SCHEDULER": scheduler}
    request = edits.parse(PROMPT="a cat", NEGATIVE_PROMPT="blurry", SEED=3, **named, **fields)
    pipeline = oracle(edits.checkpoint.path, scheduler, "MASK_IMAGE" in fields)
    wanted = expected(pipeline, request, given, "latent")
    return float((edits.latents(request) - wanted).abs().max())


@pytest.mark.parametrize("strength", [0.3, 0.7, 0.9999, 1.0])
@pytest.mark.parametrize("scheduler", ["euler", "euler_a", "ddim", "dpmpp_2m", "lcm", "heun", None])
@pytest.mark.parametrize(("inpaints", "masked"), [(PLAIN, False), (PLAIN, True), (INPAINTING, True)])
@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_every_kind_sampler_and_strength(
    edits: Callable[[str, bool], LocalEdits],
    family: str,
    inpaints: bool,
    masked: bool,
    scheduler: str | None,
    strength: float,
) -> None:
    mask = {"MASK_IMAGE": box(*SIZE, 9, 5, 27, 31)} if masked else {}
    given = {"INIT_IMAGE": picture(*SIZE), **mask, "STRENGTH": strength, "STEPS": STEPS}
    assert largest_difference(edits(family, inpaints), scheduler, **given) == 0


MADE: dict[str, Callable[[Path], Path]] = {
    "guidance-distilled": lambda at: checkpoints.sdxl(at, depth=2, time_cond_proj_dim=8),
    "tiny autoencoder": lambda at: checkpoints.with_tiny_vae(checkpoints.sdxl(at)),
    "tiny autoencoder, inpainting": lambda at: checkpoints.with_tiny_vae(checkpoints.sdxl(at, inpaints=True)),
    "SD 1.5, tiny autoencoder": lambda at: checkpoints.with_tiny_vae(checkpoints.sd15(at)),
}


@pytest.mark.parametrize(
    ("name", "masked"),
    [*((name, True) for name in MADE), *((name, False) for name in MADE if "inpainting" not in name)],
)
def test_other_checkpoints(name: str, masked: bool, tmp_path: Path) -> None:
    edits = LocalEdits(Checkpoint(MADE[name](tmp_path / "checkpoint")))
    mask = {"MASK_IMAGE": box(*SIZE, 9, 5, 27, 31)} if masked else {}
    given = {"INIT_IMAGE": picture(*SIZE), **mask, "STRENGTH": 0.7, "STEPS": STEPS}
    assert largest_difference(edits, "euler_a", **given) == 0


def test_statistics_of_latents_count_as_in_diffusers(tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoints.sdxl(tmp_path / "checkpoint", depth=2))
    config = checkpoint.path / "vae/config.json"
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.5, 1.0, 2.0]}
    config.write_text(json.dumps(json.loads(config.read_text()) | statistics))
    edits = LocalEdits(Checkpoint(checkpoint.path))
    given = {"INIT_IMAGE": picture(*SIZE), "STRENGTH": 0.7, "STEPS": STEPS}
    assert largest_difference(edits, "euler", **given) == 0
