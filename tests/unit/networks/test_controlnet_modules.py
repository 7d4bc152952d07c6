"""ControlNets as modules of tensors, and the embedding of their pictures by itself."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.controlnets.weights import load_controlnet
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.controlnet_modules import PositionalControlNet


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@torch.no_grad()
def test_the_embedding_outlives_its_network(tmp_path: Path, order: str) -> None:
    """Where an engine evaluates the network, the embedding is all that is kept of it."""
    checkpoint = Checkpoint(checkpoints.sd15(tmp_path / "checkpoint"))
    config = {"controlnet_conditioning_channel_order": order}
    path = checkpoints.controlnet(checkpoint.path, tmp_path / "edges", 0, **config)
    network = load_controlnet(path, checkpoint, torch.float32)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = network.controlnet_cond_embedding(pixels if order == "rgb" else pixels.flip(1))
    embed, of_network = PositionalControlNet(network).embed, weakref.ref(network)
    del network
    gc.collect()
    assert of_network() is None
    assert torch.equal(embed(pixels), expected)
