"""Transformers over masked tokens alone: with what the same input gives elsewhere, the prediction is the exact one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.token_masks import TokenMask, token_mask
from swiftdiffusion.python_backends.networks.token_stacks import MaskedRows, TokenStacks
from swiftdiffusion.python_backends.networks.unet import arguments, example
from swiftdiffusion.python_backends.networks.unet_halves import DecoderHalf, EncoderHalf

Networks = Callable[[str], tuple[Checkpoint, torch.nn.Module]]
SIDES = (18, 11)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """UNets of both families."""

    def make(family: str) -> tuple[Checkpoint, torch.nn.Module]:
        checkpoint = Checkpoint(getattr(checkpoints, family)(tmp_path_factory.mktemp(family)))
        return checkpoint, checkpoint.load_unet(torch.device("cpu"), torch.float32).eval()

    return cache(make)


def given(checkpoint: Checkpoint, rows: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(each.shape, generator=generator) for name, each in example(checkpoint, rows).items()}
    latents = torch.randn(rows, checkpoint.unet_channels, *SIDES, generator=generator)
    tensors |= {"LATENTS": latents, "TIMESTEPS": torch.full((rows, 1), 500.0)}
    return arguments(tensors, torch.device("cpu"), torch.float32)


@torch.no_grad()
def predict(unet: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return DecoderHalf(unet)(inputs[2], *EncoderHalf(unet)(*inputs))


def box(top: int, left: int, bottom: int, right: int, levels: int) -> TokenMask:
    mask = torch.zeros(SIDES)
    mask[top:bottom, left:right] = 1
    return token_mask(mask, levels)


def filled(known: list[torch.Tensor], number: int, out: torch.Tensor) -> torch.Tensor:
    return out.copy_(known[number])


def placed(*masks: TokenMask) -> dict[tuple[int, int], torch.Tensor]:
    return {side: torch.stack([mask.places[side] for mask in masks]) for side in masks[0].places}


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
@pytest.mark.parametrize("corners", [(2, 1, 9, 8), (0, 0, 1, 1), (10, 6, 18, 11), (0, 0, 18, 11)])
def test_with_values_of_the_same_input_it_is_exact(
    networks: Networks, family: str, corners: tuple[int, int, int, int]
) -> None:
    checkpoint, unet = networks(family)
    inputs, stacks = given(checkpoint, 2), TokenStacks(unet)
    wanted = predict(unet, inputs)
    with stacks.recorded([0, 1]) as values:
        assert torch.equal(predict(unet, inputs), wanted)
    assert len(values) == len(stacks.levels)
    mask = box(*corners, levels=len(unet.config.block_out_channels))
    known = partial(filled, [torch.stack(each) for each in values])
    with stacks.masked([MaskedRows(slice(0, 2), placed(mask, mask), known)]):
        found = predict(unet, inputs)
    assert (found - wanted).abs().max() <= 1e-5
    assert torch.equal(predict(unet, inputs), wanted)


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_rows_with_masks_of_their_own_are_what_they_are_apart(networks: Networks, family: str) -> None:
    checkpoint, unet = networks(family)
    inputs, stacks = given(checkpoint, 3), TokenStacks(unet)
    levels = len(unet.config.block_out_channels)
    masks = [box(1, 1, 9, 9, levels), box(9, 1, 17, 9, levels)]
    assert masks[0].sizes == masks[1].sizes
    with stacks.recorded([2, 0]) as values:
        predict(unet, tuple(each.flip(-1) for each in inputs))
    assert [len(each) for each in values] == [2] * len(stacks.levels)

    def of(*rows: int) -> torch.Tensor:
        chosen = tuple(each[list(rows)] if each.numel() else each for each in inputs)
        known = partial(filled, [torch.stack([each[row] for row in rows]) for each in values])
        with stacks.masked([MaskedRows(slice(0, len(rows)), placed(*(masks[row] for row in rows)), known)]):
            return predict(unet, chosen)

    together, apart = of(0, 1), torch.cat([of(0), of(1)])
    assert (together - apart).abs().max() <= 1e-5
    exact = predict(unet, tuple(each[:2] for each in inputs))
    assert (together - exact).abs().max() > 1e-3, "other values are of no effect"


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
@pytest.mark.parametrize("unknown", [(), (0,)])
def test_masks_of_several_sizes_and_none_share_a_call(
    networks: Networks, family: str, unknown: tuple[int, ...]
) -> None:
    checkpoint, unet = networks(family)
    inputs, stacks = given(checkpoint, 4), TokenStacks(unet)
    levels = len(unet.config.block_out_channels)
    masks = [box(1, 1, 5, 5, levels), box(9, 1, 17, 9, levels), box(1, 3, 9, 11, levels)]
    assert masks[0].sizes < masks[1].sizes == masks[2].sizes
    with stacks.recorded([0, 1, 2, 3]) as others:
        predict(unet, tuple(each.flip(-1) for each in inputs))

    def part(begin: int, *rows: int) -> MaskedRows:
        known = partial(filled, [torch.stack([each[row] for row in rows]) for each in others])
        places = placed(*(masks[row - 1] for row in rows))
        return MaskedRows(slice(begin, begin + len(rows)), places, known, unknown if rows == (1,) else ())

    with stacks.recorded([0]) as recorded, stacks.masked([MaskedRows(slice(0, 1)), part(1, 1), part(2, 2, 3)]):
        together = predict(unet, inputs)
    apart = []
    for row in range(4):
        with stacks.recorded([0]) as alone, stacks.masked([part(0, row)] if row else []):
            apart.append(predict(unet, tuple(each[row : row + 1] if each.numel() else each for each in inputs)))
        if not row:
            assert [len(each) for each in recorded] == [len(each) for each in alone]
            pairs = zip(recorded, alone, strict=True)
            assert all(torch.allclose(found[0], wanted[0], atol=1e-5) for found, wanted in pairs)
    assert (together - torch.cat(apart)).abs().max() <= 1e-5


def test_what_was_recorded_is_the_callers_alone(networks: Networks) -> None:
    checkpoint, unet = networks("sdxl")
    stacks = TokenStacks(unet)
    with stacks.recorded([0]) as values:
        predict(unet, given(checkpoint, 1))
    first = weakref.ref(values[0][0])
    assert first() is not None
    del values
    assert first() is None


def test_other_blocks_are_refused(networks: Networks) -> None:
    _, unet = networks("sdxl")
    block = next(
        module for module in unet.modules() if hasattr(module, "only_cross_attention") and hasattr(module, "attn1")
    )
    block.only_cross_attention = True
    try:
        with pytest.raises(ValueError, match="of a kind"):
            TokenStacks(unet)
    finally:
        block.only_cross_attention = False
