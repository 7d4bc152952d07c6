"""A VAE on cores that are idle: the same picture to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.networks import idle_cores as module
from swiftdiffusion.python_backends.networks.idle_cores import IdleCores, idle_cores
from swiftdiffusion.python_backends.networks.latent_decoding import decode_latents


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("load", "idle"), [("0.1 0.2 0.3 1/80 9", 3), ("9 9 9 3/80 9", 1), ("9 9 9 40/80 9", 0), ("", 0), ("?", 0)]
)
def test_idle_cores_are_those_that_nobody_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str, idle: int
) -> None:
    (tmp_path / "loadavg").write_text(load)
    monkeypatch.setattr(module, "LOAD", tmp_path / "loadavg")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert idle_cores() == idle


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("side", [(16, 16), (9, 14)])
def test_a_picture_is_the_same_on_any_number_of_cores(side: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vae = checkpoints.vae(1, 3).eval()
    latents = torch.randn(1, 4, *side)
    with torch.inference_mode():
        expected = decode_latents(vae, latents)
        cores = IdleCores(vae)
        for idle in (0, 1, 3):
            monkeypatch.setattr(module, "idle_cores", lambda idle=idle: idle)
            with cores.borrowed():
                assert torch.get_num_threads() == 1 + idle
                assert torch.equal(decode_latents(vae, latents), expected)
            assert torch.get_num_threads() == 1
