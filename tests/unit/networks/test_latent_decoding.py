"""Pictures of a batch: each as if it were alone, in the memory of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.latent_decoding import decode_latents
from swiftdiffusion.python_backends.networks.needs import LiveTensors

ROWS = 8


@pytest.fixture(scope="module", autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    path = checkpoints.sdxl(tmp_path_factory.mktemp("decoding") / "sdxl")
    return Checkpoint(path).load_vae(torch.device("cpu"), torch.float32)


def latents(rows: int) -> torch.Tensor:
    return torch.randn(rows, 4, 16, 24, generator=torch.Generator().manual_seed(0))


def peak(vae: torch.nn.Module, rows: int) -> int:
    """Most bytes of tensors at once, without the pictures themselves."""
    with LiveTensors((*vae.parameters(), *vae.buffers())) as live:
        pictures = decode_latents(vae, latents(rows))
    return live.peak - pictures.nbytes


def test_a_picture_is_the_same_in_any_company(vae: torch.nn.Module) -> None:
    given = latents(ROWS)
    pictures = decode_latents(vae, given)
    assert pictures.shape[0] == ROWS
    for row, picture in zip(given.split(1), pictures, strict=True):
        assert torch.equal(decode_latents(vae, row)[0], picture)


def test_many_pictures_take_the_memory_of_one(vae: torch.nn.Module) -> None:
    assert peak(vae, ROWS) < 1.1 * peak(vae, 1)
