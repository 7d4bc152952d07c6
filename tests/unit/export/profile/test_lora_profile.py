"""`profile-lora`: the step at which a LoRA begins to matter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import checkpoints
import lora_files
from swiftdiffusion.clients.cli import app
from swiftdiffusion.export.profile.local_pipeline import LocalPipeline
from swiftdiffusion.export.profile.lora_profile import profile_lora
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.lora.files.outside_settings import OutsideSettings
from swiftdiffusion.python_backends.lora.loading.catalogue import Catalogue
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.request.completed import CompletedRequest

STEPS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl"), depth=2))


@pytest.fixture(scope="module")
def loras(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("loras")
    lora_files.kohya(BaseModules.of(checkpoint).shapes, alpha=lambda number, rank: 20.0).save(
        directory / "strong.safetensors"
    )
    return directory


@pytest.fixture(scope="module")
def pipeline(checkpoint: Checkpoint) -> Iterator[LocalPipeline]:
    with LocalPipeline(checkpoint, torch.device("cpu"), torch.float32) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def requests() -> list[CompletedRequest]:
    return [
        CompletedRequest("run", text, None, seed, STEPS, 3.0, 32, 32, None) for seed, text in enumerate(("a cat", ""))
    ]


def test_the_bound_is_the_first_step_after_which_latents_differ(
    pipeline: LocalPipeline, loras: Path, requests: list[CompletedRequest]
) -> None:
    file = loras / "strong.safetensors"
    strong = profile_lora(pipeline, file, requests)
    assert strong.bound < STEPS - 1
    assert strong.similarity[strong.bound] < 0.99
    assert all(value >= 0.99 for value in strong.similarity[: strong.bound])
    assert all(low <= mean for low, mean in zip(strong.lowest, strong.similarity, strict=True))
    without = profile_lora(pipeline, file, requests, scale=0.0)
    assert (without.bound, min(without.lowest)) == (STEPS - 1, pytest.approx(1.0))


def test_runs_that_switch_before_step_0_are_runs_with_the_lora(
    pipeline: LocalPipeline, loras: Path, requests: list[CompletedRequest]
) -> None:
    added = pipeline.add_lora(loras / "strong.safetensors")
    base, direct = pipeline.start(requests), pipeline.start(requests, added)
    switched = pipeline.switch(base, added)
    for _ in range(STEPS):
        for runs, resident in ((base, ()), (direct, added), (switched, added)):
            pipeline.step(runs, resident)
    assert torch.equal(pipeline.decode(switched), pipeline.decode(direct))
    assert not torch.equal(pipeline.decode(base), pipeline.decode(direct))


def test_one_file_under_other_settings_is_another_lora(
    pipeline: LocalPipeline, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    attention = {name: shape for name, shape in BaseModules.of(checkpoint).shapes["unet"].items() if "attn1" in name}
    settings = [
        OutsideSettings(),
        OutsideSettings(alpha=2.0),
        OutsideSettings(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}).encode()),
    ]
    made = lora_files.peft({"unet": attention}, prefix=lambda component: "base_model.model.")
    file = made.save(tmp_path / "raw.safetensors")
    sets = [pipeline.add_lora(file, 1.0, outside) for outside in settings]
    assert len(set(sets)) == len(sets)


def test_the_command_writes_what_the_catalogue_reads(checkpoint: Checkpoint, loras: Path) -> None:
    options = ["--checkpoint", str(checkpoint.path), "--loras", str(loras), "--steps", str(STEPS), "--prompt", "a cat"]
    save_file({"clip_l": torch.ones(1, 16), "clip_g": torch.ones(1, 24)}, loras / "embedding.safetensors")
    result = CliRunner().invoke(app, ["profile-lora", *options])
    assert result.exit_code == 0, result.output
    assert "embedding is a textual inversion embedding and is left out" in " ".join(result.output.split())
    assert not (loras / "embedding.profile.json").exists()
    profile = json.loads((loras / "strong.profile.json").read_text())
    catalogue = Catalogue(loras)
    assert catalogue.bound("strong", STEPS) == profile["bound"]
    assert Image.open(loras / "strong.profile.png").width > 300


def test_the_command_says_what_is_wrong(checkpoint: Checkpoint, loras: Path) -> None:
    options = ["--checkpoint", str(checkpoint.path), "--loras", str(loras)]
    result = CliRunner().invoke(app, ["profile-lora", *options, "stronk"])
    assert result.exit_code == 2
    assert "nearest: strong" in " ".join(result.output.split())
