"""Decoding in float16 what float16 cannot hold: near float32's picture; in float32 the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

import checkpoints
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.fused_modules import fuse
from swiftdiffusion.python_backends.networks.half_decoder import scale_decoder
from swiftdiffusion.python_backends.networks.latent_decoding import decode_latents
from swiftdiffusion.python_backends.networks.savings import ALL

LATENTS = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def large(vae: AutoencoderKL, factor: float) -> AutoencoderKL:
    """The same whose first activations are so many times as large."""
    for parameter in vae.decoder.conv_in.parameters():
        parameter.mul_(factor)
    return vae


def wanted(vae: AutoencoderKL) -> torch.Tensor:
    return decode_latents(deepcopy(vae).float(), LATENTS)


def difference(found: torch.Tensor, other: torch.Tensor) -> float:
    return float((found.float() - other.float()).abs().mean())


@pytest.mark.parametrize("fuses", [False, True])
def test_in_float32_not_a_bit_changes(fuses: bool) -> None:
    vae = checkpoints.vae(3)
    before = vae.decode(LATENTS).sample
    scaled = deepcopy(vae)
    scale_decoder(scaled)
    assert torch.equal(scaled.decode(LATENTS).sample, before)
    if fuses:
        fuse(scaled, ALL)
        torch.testing.assert_close(scaled.decode(LATENTS).sample, before, rtol=0, atol=1e-5)


def test_activations_beyond_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = large(checkpoints.vae(3), 2.0**17)
    exact = wanted(vae)
    half = deepcopy(vae).half()
    assert not half.decode(LATENTS.half()).sample.isfinite().all(), "else nothing is shown"
    scale_decoder(vae)
    assert torch.equal(wanted(vae), exact)
    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderKL, "float", lambda _: pytest.fail("float32 is not wanted"))
        assert difference(decode_latents(vae.half(), LATENTS), exact) < 0.5


def test_what_still_overflows_is_decoded_in_float32() -> None:
    vae = large(checkpoints.vae(3), 2.0**23)
    exact = wanted(vae)
    scale_decoder(vae)
    half = vae.half()
    assert not half.decode(LATENTS.half()).sample.isfinite().all(), "else nothing is shown"
    assert difference(decode_latents(half, LATENTS), exact) < 0.5
    assert next(half.parameters()).dtype == torch.float16


def test_a_checkpoint_that_wants_float32_is_loaded_in_float16_when_asked(tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoints.sdxl(tmp_path / "sdxl"))
    assert checkpoint.vae_dtype(torch.float16) == torch.float32
    half, whole = checkpoint.load_half_vae(CPU), checkpoint.load_vae(CPU, torch.float32)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    assert difference(decode_latents(half, LATENTS), decode_latents(whole, LATENTS)) < 0.5
