"""A VAE on cores that are idle: the same picture to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from swiftdiffusion.python_backends.common import processors
from swiftdiffusion.python_backends.networks import idle_cores as module
from swiftdiffusion.python_backends.networks.idle_cores import MOST_THREADS, IdleCores, idle_cores
from swiftdiffusion.python_backends.networks.latent_decoding import decode


@pytest.fixture
def four_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of four cores, and where it says what they do."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(module, "LOAD", tmp_path / "loadavg")
    monkeypatch.setattr(processors, "QUOTAS", (tmp_path / "cpu.max", tmp_path / "cpu.cfs_quota_us"))
    (tmp_path / "loadavg").write_text("0.1 0.2 0.3 1/80 9")
    return tmp_path


@pytest.mark.parametrize(
    ("load", "idle"), [("0.1 0.2 0.3 1/80 9", 3), ("9 9 9 3/80 9", 1), ("9 9 9 40/80 9", 0), ("", 0), ("?", 0)]
)
def test_idle_cores_are_those_that_nobody_wants(four_cores: Path, load: str, idle: int) -> None:
    (four_cores / "loadavg").write_text(load)
    assert idle_cores() == idle


@pytest.mark.parametrize(
    ("files", "idle"),
    [
        ({"cpu.max": "200000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 3),
        ({"cpu.max": "900000 100000"}, 3),
        ({"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"}, 1),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 3),
        ({"cpu.cfs_quota_us": "200000"}, 3),
    ],
    ids=str,
)
def test_a_containers_quota_counts(four_cores: Path, files: dict[str, str], idle: int) -> None:
    for name, content in files.items():
        (four_cores / name).write_text(content)
    assert idle_cores() == idle


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("widths", [(16, 32, 32), (32, 64, 512)])
@pytest.mark.parametrize("side", [(16, 16), (13, 21), (1, 14)])
def test_a_picture_is_the_same_on_any_number_of_cores(
    side: tuple[int, int], widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=16,
    ).eval()
    latents = torch.randn(1, 4, *side)
    used: list[int] = []
    with torch.inference_mode():
        expected = decode(vae, latents)
        cores = IdleCores(vae)
        vae.decoder.conv_in.register_forward_pre_hook(lambda *_: used.append(torch.get_num_threads()))
        monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.0)
        for idle in (0, 1, 2, 63):
            monkeypatch.setattr(module, "idle_cores", lambda idle=idle: idle)
            with cores.borrowed():
                assert torch.equal(decode(vae, latents), expected)
                assert torch.get_num_threads() == 1
    assert used == [1, 2, 3, MOST_THREADS]


@pytest.mark.usefixtures("one_thread")
def test_a_long_call_takes_cores_when_they_become_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Sequential(*(torch.nn.Conv2d(1, 1, 3) for _ in range(3)))
    cores, used, idle = IdleCores(network), [], iter((0, 0, 2))
    for layer in network:
        layer.register_forward_pre_hook(lambda *_: used.append(torch.get_num_threads()))
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(module, "idle_cores", lambda: next(idle))
    with cores.borrowed():
        network(torch.zeros(1, 1, 9, 9))
    network(torch.zeros(1, 1, 9, 9))
    assert used == [1, 1, 3, 1, 1, 1]
