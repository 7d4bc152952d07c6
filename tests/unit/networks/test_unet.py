"""The shard's UNet: traced calls equal the module bit for bit and see parameters that change in place."""

from __future__ import annotations

import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.networks import warm_up
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.unet import UNet
from swiftdiffusion.python_backends.networks.unet_halves import EncoderHalf, pack

CPU = torch.device("cpu")


UNETS: dict[str, dict[str, object]] = {
    "sd15": {},
    "without a mid block, as tiny-sd and BK-SDM's small one": {"mid_block_type": None},
    "of uneven depth, as SSD-1B": {
        "transformer_layers_per_block": [[2], [1]],
        "reverse_transformer_layers_per_block": [1, [2, 1]],
        "mid_block_type": "UNetMidBlock2D",
    },
}


@pytest.fixture(scope="module", params=["sdxl", *UNETS])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("checkpoints") / "checkpoint"
    if request.param == "sdxl":
        return Checkpoint(checkpoints.sdxl(directory))
    return Checkpoint(checkpoints.sd15(directory, **UNETS[request.param]))


@pytest.fixture(scope="module")
def unet(checkpoint: Checkpoint) -> UNet:
    return UNet(checkpoint, CPU, torch.float32)


@pytest.fixture
def module(unet: UNet, checkpoint: Checkpoint) -> torch.nn.Module:
    """diffusers' own, with the weights that the shard's has by now."""
    loaded = checkpoint.load_unet(CPU, torch.float32)
    own = unet._halves[0].unet.parameters()
    for parameter, other in zip(loaded.parameters(), own, strict=True):
        parameter.data = other.clone()  # mapped from the file it is unaligned, which changes the last bits
    return loaded


def arguments(checkpoint: Checkpoint, rows: int, side: int, chunks: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    tokens, width = checkpoint.text_embedding_shape

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {
        "LATENTS": noise(rows, 4, side, side),
        "TIMESTEPS": torch.arange(rows).float()[:, None] * 100 + 7,
        "ENCODER_HIDDEN_STATES": noise(rows, chunks * tokens, width),
    }
    if checkpoint.pooled_width is not None:
        tensors |= {"TEXT_EMBEDS": noise(rows, checkpoint.pooled_width), "TIME_IDS": torch.full((rows, 6), 64.0)}
    return tensors


@pytest.mark.parametrize(
    ("rows", "side", "chunks"),
    [(1, 16, 1), (2, 16, 1), (2, 16, 3), (3, 16, 1), (2, 24, 1), (2, 15, 2), (1, 2, 1)],
)
def test_every_call_equals_the_module(
    checkpoint: Checkpoint, unet: UNet, module: torch.nn.Module, rows: int, side: int, chunks: int
) -> None:
    tensors = arguments(checkpoint, rows, side, chunks)

    def expected() -> torch.Tensor:
        added = (
            {"text_embeds": tensors["TEXT_EMBEDS"], "time_ids": tensors["TIME_IDS"]}
            if checkpoint.family == "sdxl"
            else None
        )
        with torch.inference_mode():
            return module(
                tensors["LATENTS"],
                tensors["TIMESTEPS"][:, 0],
                tensors["ENCODER_HIDDEN_STATES"],
                added_cond_kwargs=added,
                return_dict=False,
            )[0]

    assert torch.equal(unet(tensors), expected())
    before = unet(tensors)
    for own, other in zip(unet._halves[0].unet.parameters(), module.parameters(), strict=True):
        own.mul_(1.01)
        other.mul_(1.01)
    assert torch.equal(unet(tensors), expected())
    assert not torch.equal(unet(tensors), before)


@pytest.mark.parametrize(("rows", "side"), [(2, 16), (2, 24), (1, 20), (2, 17)])
def test_residuals_join_as_in_diffusers(
    checkpoint: Checkpoint, unet: UNet, module: torch.nn.Module, rows: int, side: int
) -> None:
    tensors = arguments(checkpoint, rows, side)
    encoded = unet.encode(tensors)
    generator = torch.Generator().manual_seed(0)
    mid, _, *skips = encoded.halfway
    residuals = [torch.randn(tensor.shape, generator=generator) for tensor in (*skips, mid)]
    added = (
        {"text_embeds": tensors["TEXT_EMBEDS"], "time_ids": tensors["TIME_IDS"]}
        if checkpoint.family == "sdxl"
        else None
    )
    with torch.inference_mode():
        expected = module(
            tensors["LATENTS"],
            tensors["TIMESTEPS"][:, 0],
            tensors["ENCODER_HIDDEN_STATES"],
            added_cond_kwargs=added,
            down_block_additional_residuals=tuple(residuals[:-1]),
            mid_block_additional_residual=residuals[-1],
            return_dict=False,
        )[0]
    assert torch.equal(unet.decode(encoded, pack(residuals)), expected)
    nothing = torch.zeros_like(pack(residuals))
    assert torch.equal(unet.decode(unet.encode(tensors), nothing), unet(tensors))


def test_slow_networks_are_evaluated_once_before_they_are_ready(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[int] = []
    forward = EncoderHalf.forward
    monkeypatch.setattr(
        EncoderHalf, "forward", lambda half, *given: evaluated.append(len(given[0])) or forward(half, *given)
    )
    monkeypatch.setattr(warm_up, "SLOW_S", 0.0)
    slow = UNet(checkpoint, CPU, torch.float32)
    assert evaluated == [1]
    tensors = arguments(checkpoint, 2, 16)
    monkeypatch.undo()
    assert torch.equal(slow(tensors), UNet(checkpoint, CPU, torch.float32)(tensors))
