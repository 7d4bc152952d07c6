"""The linear map from latents to colours: fitted to any autoencoder, and right on one that was trained."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

import checkpoints
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.latent_decoding import decode_latents
from swiftdiffusion.python_backends.networks.linear_preview import LinearPreview, fit_linear_preview

DEMO = Path(__file__).resolve().parents[3] / "export/demo/weights"
COLOURS = {
    "red": (230, 30, 30),
    "green": (30, 200, 60),
    "blue": (30, 60, 220),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
"""The demo family's pictures are of such."""


@pytest.fixture(scope="module")
def demo() -> AutoencoderKL:
    return Checkpoint(DEMO).load_vae(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def map_of_demo(demo: AutoencoderKL) -> LinearPreview:
    return fit_linear_preview(demo, 8)


@cache
def tiny(kind: str) -> AutoencoderKL | AutoencoderTiny:
    """Of random weights, with four pixels per latent cell."""
    if kind == "AutoencoderKL":
        return checkpoints.vae(1).eval()
    torch.manual_seed(2)
    blocks = {"encoder_block_out_channels": (16, 16, 16), "decoder_block_out_channels": (16, 16, 16)}
    return AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1)).eval()


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_any_autoencoder_has_one_the_same_each_time(kind: str) -> None:
    fitted = fit_linear_preview(tiny(kind), 4)
    assert fit_linear_preview(tiny(kind), 4) == fitted
    assert [len(row) for row in fitted.weights] == [3] * 4
    assert 0 < fitted.error < 0.5
    assert LinearPreview.from_json(fitted.to_json()) == fitted
    assert json.loads(fitted.to_json())["error"] == fitted.error


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9), (1, 16), (1, 1)])
def test_a_preview_has_a_pixel_per_latent_cell(height: int, width: int) -> None:
    latents = 100 * torch.randn(4, height, width, generator=torch.Generator().manual_seed(0))
    picture = fit_linear_preview(tiny("AutoencoderTiny"), 4)(latents)
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8


def test_colours_are_clamped_and_a_channel_adds_its_own() -> None:
    linear = LinearPreview(((0.5, 0.0, -9.0), (0.0, 0.25, 0.0)), (0.1, 0.2, 0.5), 0.0)
    latents = torch.tensor([[[0.0, 1.0]], [[0.0, 4.0]]])
    assert linear(latents).tolist() == [[[26, 51, 128], [153, 255, 0]]]


def test_normalised_latents_are_those_that_the_decoder_takes() -> None:
    """Of configurations with `latents_mean` and `latents_std`, the map is that of normalised latents."""
    plain, normalised = (checkpoints.vae(1).eval() for _ in range(2))
    mean, std = [0.5, -1.0, 0.0, 2.0], [2.0, 0.5, 1.0, 4.0]
    normalised.register_to_config(latents_mean=mean, latents_std=std)
    latents = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    factor = plain.config.scaling_factor
    columns = [torch.tensor(each).view(1, -1, 1, 1) for each in (mean, std)]
    same = (latents * columns[1] / factor + columns[0]) * factor
    with torch.no_grad():
        assert torch.allclose(
            decode_latents(normalised, latents).float(), decode_latents(plain, same).float(), atol=1.0
        )
    found, expected = fit_linear_preview(normalised, 4), fit_linear_preview(plain, 4)
    assert found.error == pytest.approx(expected.error, abs=0.002)
    assert np.allclose(found(latents[0]), expected(same[0]), atol=3)


def test_the_error_on_the_demo_familys_autoencoder_is_small(map_of_demo: LinearPreview) -> None:
    assert 0 < map_of_demo.error <= 0.03


@torch.no_grad()
@pytest.mark.parametrize("colour", COLOURS)
def test_a_flat_colour_comes_back(demo: AutoencoderKL, map_of_demo: LinearPreview, colour: str) -> None:
    flat = torch.tensor(COLOURS[colour]).view(1, 3, 1, 1).expand(1, 3, 128, 128)
    picture = map_of_demo(encoded(demo, flat)[0])
    assert picture.shape == (16, 16, 3)
    assert np.abs(picture.astype(int) - COLOURS[colour]).max() <= 40


@torch.no_grad()
def test_it_resembles_what_the_decoder_shows(demo: AutoencoderKL, map_of_demo: LinearPreview) -> None:
    bands = torch.tensor([COLOURS[colour] for colour in ("red", "white", "green", "blue")])
    latents = encoded(demo, bands.repeat_interleave(32, 0).T.reshape(1, 3, 128, 1).expand(1, 3, 128, 128))
    decoded = decode_latents(demo, latents)[0].reshape(16, 8, 16, 8, 3).float().mean((1, 3)).numpy()
    assert np.abs(map_of_demo(latents[0]) - decoded).mean() <= 20


def encoded(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Latents of pictures [B, 3, H, W], 0 to 255."""
    return vae.encode(pixels / 127.5 - 1).latent_dist.mode() * vae.config.scaling_factor
