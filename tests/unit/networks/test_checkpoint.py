"""Weights of a checkpoint: the files that are read, and what is said of those that are not whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoints
from swiftdiffusion.python_backends.controlnets.weights import ControlNetFileError, load_controlnet
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint, CheckpointError
from swiftdiffusion.python_backends.networks.checkpoint_checks import check_checkpoint

WHERE = torch.device("cpu"), torch.float32
LOADERS = {
    "unet": Checkpoint.load_unet,
    "vae": Checkpoint.load_vae,
    "text_encoder": Checkpoint.load_text_pipeline,
    "text_encoder_2": Checkpoint.load_text_pipeline,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path / "checkpoint"))


def drop_a_weight(directory: Path) -> None:
    [file] = directory.glob("*.safetensors")
    tensors = load_file(file)
    del tensors[max(tensors)]
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("part", LOADERS)
def test_a_weight_that_is_missing_is_named(checkpoint: Checkpoint, part: str) -> None:
    LOADERS[part](checkpoint, *WHERE)
    drop_a_weight(checkpoint.path / part)
    with pytest.raises(CheckpointError, match=rf"/{part} is not whole: it lacks [\w.]+ \(1 in all\)"):
        LOADERS[part](checkpoint, *WHERE)


def test_a_controlnet_that_lacks_a_weight(checkpoint: Checkpoint, tmp_path: Path) -> None:
    directory = checkpoints.controlnet(checkpoint.path, tmp_path / "edges", 0)
    drop_a_weight(directory)
    with pytest.raises(
        ControlNetFileError, match=r"/edges does not hold what its config\.json says: it lacks [\w.]+ \(1"
    ):
        load_controlnet(directory, checkpoint, torch.float32)


def test_parts_may_be_of_different_variants(checkpoint: Checkpoint) -> None:
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = checkpoint.path / part / f"{name}.safetensors"
        shutil.move(file, file.with_name(f"{name}.fp16.safetensors"))
        LOADERS[part](checkpoint, *WHERE)
        assert [each.name for each in checkpoint.weight_files(part)] == [f"{name}.fp16.safetensors"]
    checkpoint.load_vae(*WHERE)
    both = checkpoint.path / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(both, both.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert checkpoint.weight_files("vae") == [both]


def test_files_behind_links_are_the_checkpoints(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As the Hugging Face hub's cache lays them: every file a link to a blob that is called by its hash."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in checkpoint.path.rglob("*") if path.is_file())):
        file.rename(blobs / f"{number:064x}")
        file.symlink_to(blobs / f"{number:064x}")
    check_checkpoint(Checkpoint(checkpoint.path))
    for load in LOADERS.values():
        load(Checkpoint(checkpoint.path), *WHERE)
