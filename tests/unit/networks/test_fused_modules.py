"""Networks with fused operators: the same numbers on the CPU, the same parameters under the same names."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D

import checkpoints
from swiftdiffusion.python_backends.controlnets.weights import load_controlnet
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.controlnet_modules import PositionalControlNet
from swiftdiffusion.python_backends.networks.fused_modules import fuse
from swiftdiffusion.python_backends.networks.unet import arguments, example
from swiftdiffusion.python_backends.networks.unet_halves import DecoderHalf, EncoderHalf

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(getattr(checkpoints, request.param)(tmp_path_factory.mktemp(request.param) / "checkpoint"))


def fused(network: torch.nn.Module) -> torch.nn.Module:
    """A copy whose modules are fused, and nothing but its classes differs."""
    other = copy.deepcopy(network)
    fuse(other)
    assert not [module for module in other.modules() if type(module) in (torch.nn.GroupNorm, GEGLU, ResnetBlock2D)]
    assert list(other.state_dict()) == list(network.state_dict())
    return other


def inputs(checkpoint: Checkpoint) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(zeros.shape, generator=generator) for name, zeros in example(checkpoint, 2).items()}
    tensors["TIMESTEPS"] = torch.tensor([[500.0], [3.0]])
    return arguments(tensors, CPU, torch.float32)


@torch.no_grad()
def test_a_unet(checkpoint: Checkpoint) -> None:
    unet = checkpoint.load_unet(CPU, torch.float32)
    taken = inputs(checkpoint)

    def predict(network: torch.nn.Module) -> torch.Tensor:
        return DecoderHalf(network)(taken[2], *EncoderHalf(network)(*taken))

    other = fused(unet)
    before = predict(unet)
    assert torch.equal(predict(other), before)
    for network in (unet, other):
        network.get_parameter("mid_block.resnets.0.time_emb_proj.weight").mul_(2)
        network.get_parameter("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight").mul_(2)
    assert torch.equal(predict(other), predict(unet))
    assert not torch.equal(predict(other), before)


@torch.no_grad()
def test_channels_last_from_the_first_convolution_to_the_last(checkpoint: Checkpoint) -> None:
    unet = checkpoint.load_unet(CPU, torch.float32)
    other = fused(unet).to(memory_format=torch.channels_last)
    Patcher({"unet": other})  # moves the weights
    wrong = []

    def look(name: str, given: torch.Tensor) -> None:
        if given.ndim == 4 and not given.is_contiguous(memory_format=torch.channels_last):
            wrong.append(name)

    for name, module in other.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm) and name != "conv_in":
            module.register_forward_pre_hook(lambda _, given, name=name: look(name, given[0]))
    taken = inputs(checkpoint)
    halfway = EncoderHalf(other)(*taken)
    for number, tensor in enumerate(halfway):
        look(f"halfway {number}", tensor)
    result = DecoderHalf(other)(taken[2], *halfway)
    assert not wrong
    expected = DecoderHalf(unet)(taken[2], *EncoderHalf(unet)(*taken))
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("checkpoint", "kind"),
    [("sdxl", "controlnet"), ("sd15", "controlnet"), ("sdxl", "controlnet_union")],
    indirect=["checkpoint"],
)
def test_a_controlnet(checkpoint: Checkpoint, kind: str, tmp_path: Path) -> None:
    network = load_controlnet(
        getattr(checkpoints, kind)(checkpoint.path, tmp_path / kind, 0), checkpoint, torch.float32
    )
    taken = (*inputs(checkpoint)[:5], torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1)))
    modes = (0,) if kind == "controlnet_union" else ()
    expected = PositionalControlNet(network)(*taken, modes=modes)
    for ours, theirs in zip(PositionalControlNet(fused(network))(*taken, modes=modes), expected, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_a_vae() -> None:
    vae: AutoencoderKL = checkpoints.vae(1)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fused(vae).decode(latents).sample, vae.decode(latents).sample, rtol=0, atol=1e-5)
