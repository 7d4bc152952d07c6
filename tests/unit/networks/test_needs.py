"""What networks need, counted without weights, against what real ones take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import checkpoints
from swiftdiffusion.python_backends.controlnets.weights import ControlNetFiles
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.controlnet_modules import PositionalControlNet
from swiftdiffusion.python_backends.networks.latent_decoding import decode
from swiftdiffusion.python_backends.networks.needs import (
    controlnet_needs,
    text_encoder_needs,
    unet_needs,
    vae_needs,
)
from swiftdiffusion.python_backends.networks.speed import gflops_per_second
from swiftdiffusion.python_backends.networks.unet import arguments, example
from swiftdiffusion.python_backends.networks.unet_halves import DecoderHalf, EncoderHalf, residual_size

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("needs") / request.param
    return Checkpoint(getattr(checkpoints, request.param)(directory))


def peak_of(call: Callable[[], object]) -> int:
    """Most bytes that PyTorch's allocator gave out at once."""
    call()  # what is made once is there
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    now = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def nbytes(*networks: torch.nn.Module) -> int:
    return sum(tensor.nbytes for network in networks for tensor in (*network.parameters(), *network.buffers()))


def test_weights_are_counted_to_the_byte(checkpoint: Checkpoint) -> None:
    assert unet_needs(checkpoint).weights == nbytes(checkpoint.load_unet(CPU, torch.float32))
    assert vae_needs(checkpoint).weights == nbytes(checkpoint.load_vae(CPU, torch.float32))
    pipeline = checkpoint.load_text_pipeline(CPU, torch.float32)
    encoders = [getattr(pipeline, name) for name in checkpoint.text_encoders]
    assert text_encoder_needs(checkpoint).weights == nbytes(*encoders)


def test_activations_are_those_that_pytorch_allocates(checkpoint: Checkpoint) -> None:
    unet, vae = checkpoint.load_unet(CPU, torch.float32), checkpoint.load_vae(CPU, torch.float32)
    given = arguments(example(checkpoint, 2), CPU, torch.float32)
    real = peak_of(lambda: DecoderHalf(unet)(given[2], *EncoderHalf(unet)(*given)))
    assert 0.99 <= real / unet_needs(checkpoint).activations <= 1.25  # operators take more within themselves
    latents = example(checkpoint, 1)["LATENTS"]
    real = peak_of(lambda: decode(vae, latents))
    assert 0.99 <= real / vae_needs(checkpoint).activations <= 1.25


def test_arithmetic_is_that_of_the_real_network(checkpoint: Checkpoint) -> None:
    unet = checkpoint.load_unet(CPU, torch.float32)
    given = arguments(example(checkpoint, 2), CPU, torch.float32)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        DecoderHalf(unet)(given[2], *EncoderHalf(unet)(*given))
    assert unet_needs(checkpoint).flop == counter.get_total_flops() > 0


def test_a_controlnet_needs_its_weights_and_its_pictures_embedding(tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoints.sdxl(tmp_path / "sdxl", depth=2))
    files = ControlNetFiles.look(checkpoints.controlnet(checkpoint.path, tmp_path / "controlnet", 0), checkpoint)
    needs = controlnet_needs(PositionalControlNet(files.empty()), checkpoint)
    assert needs.weights == nbytes(files.load(torch.float32))
    unet, given = checkpoint.load_unet(CPU, torch.float32), arguments(example(checkpoint, 2), CPU, torch.float32)
    assert needs.answer == 4 * 2 * residual_size(EncoderHalf(unet)(*given))


def test_untouched_weights_are_kept_beside_patched_ones(checkpoint: Checkpoint) -> None:
    needs, unet = unet_needs(checkpoint), checkpoint.load_unet(CPU, torch.float32)
    adapted = [each for each in unet.modules() if isinstance(each, (torch.nn.Linear, torch.nn.Conv2d))]
    kept = sum(module.weight.nbytes for module in adapted)
    assert needs.nbytes(torch.float32, True) - needs.nbytes(torch.float32, False) == kept
    assert needs.nbytes(torch.float16, True) == needs.nbytes(torch.float32, True) // 2


def test_speed_is_that_of_one_thread() -> None:
    before = torch.get_num_threads()
    assert min(gflops_per_second()) > 0
    assert torch.get_num_threads() == before
