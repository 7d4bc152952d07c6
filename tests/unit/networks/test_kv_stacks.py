"""Masked tokens beside kept keys and values, as benchmarks compute them: of the same input they change nothing."""

from __future__ import annotations

import pytest
import torch
from kv_stacks import KvStacks

import checkpoints
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.token_masks import token_mask
from swiftdiffusion.python_backends.networks.unet import arguments, example
from swiftdiffusion.python_backends.networks.unet_halves import DecoderHalf, EncoderHalf

SIDES = (18, 11)


@torch.no_grad()
def test_with_keys_and_values_of_the_same_input_it_is_exact(tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint = Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl")))
    unet = checkpoint.load_unet(torch.device("cpu"), torch.float32).eval()
    given = example(checkpoint, 2) | {"LATENTS": torch.randn(2, checkpoint.unet_channels, *SIDES)}

    def predict(timestep: float) -> torch.Tensor:
        tensors = given | {"TIMESTEPS": torch.full((2, 1), timestep)}
        inputs = arguments(tensors, torch.device("cpu"), torch.float32)
        return DecoderHalf(unet)(inputs[2], *EncoderHalf(unet)(*inputs))

    stacks, cells = KvStacks(unet), torch.zeros(SIDES)
    wanted = [predict(500.0), predict(450.0)]
    with stacks.recorded() as kept:
        assert all(torch.equal(predict(timestep), each) for timestep, each in zip((500.0, 450.0), wanted, strict=True))
    cells[2:9, 1:8] = 1
    mask = token_mask(cells, len(unet.config.block_out_channels))
    with stacks.masked(mask, kept):
        found = [predict(500.0), predict(450.0)]
    assert all((one - other).abs().max() <= 1e-5 for one, other in zip(found, wanted, strict=True))
    with stacks.masked(mask, kept):
        assert (predict(0.0) - predict(0.0)).abs().max() > 1e-5  # what is kept counts, call by call
    assert torch.equal(predict(500.0), wanted[0])
