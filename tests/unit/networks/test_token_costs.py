"""What is counted of a UNet call is what torch counts while it is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import checkpoints
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.prompt_projections import PromptProjections
from swiftdiffusion.python_backends.networks.token_costs import Features, TokenCosts
from swiftdiffusion.python_backends.networks.token_masks import TokenMask, token_mask
from swiftdiffusion.python_backends.networks.token_stacks import MaskedRows, TokenStacks
from swiftdiffusion.python_backends.networks.unet import arguments, example
from swiftdiffusion.python_backends.networks.unet_halves import DecoderHalf, EncoderHalf

Networks = Callable[[str], tuple[Checkpoint, torch.nn.Module]]
SIDES = (16, 8)
CPU = torch.device("cpu")
LINEAR, CONVOLUTION, SCORES = {"mm", "addmm"}, {"convolution"}, {"bmm"}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """UNets of both families."""

    def make(family: str) -> tuple[Checkpoint, torch.nn.Module]:
        checkpoint = Checkpoint(getattr(checkpoints, family)(tmp_path_factory.mktemp(family)))
        return checkpoint, checkpoint.load_unet(CPU, torch.float32).eval()

    return cache(make)


class Counted:
    """Multiply-adds of one row's call, by operator: of each stack, and of what is not in one."""

    def __init__(self, checkpoint: Checkpoint, unet: torch.nn.Module, mask: TokenMask | None = None) -> None:
        tensors = example(checkpoint, 1) | {"LATENTS": torch.randn(1, checkpoint.unet_channels, *SIDES)}
        self.prompt = tensors["ENCODER_HIDDEN_STATES"].shape[1]
        inputs = arguments(tensors, CPU, torch.float32)
        stacks = TokenStacks(unet)
        plain = sdpa_kernel(SDPBackend.MATH)  # of the others not all are counted
        with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
            if mask is None:
                DecoderHalf(unet)(inputs[2], *EncoderHalf(unet)(*inputs))
            else:
                places = {side: each[None] for side, each in mask.places.items()}
                with stacks.masked([MaskedRows(slice(0, 1), places, lambda _, out: out.zero_())]):
                    DecoderHalf(unet)(inputs[2], *EncoderHalf(unet)(*inputs))
        counts = counter.get_flop_counts()
        names = [name for name, module in unet.named_modules() if isinstance(module, Transformer2DModel)]
        self.whole = _by_operator(counts["Global"])
        self.stacks = [self._of(counts, name) for name in sorted(names)]  # down, mid, up: as they are called

    @staticmethod
    def _of(counts: dict[str, dict[object, int]], name: str) -> Counter[str]:
        return next(_by_operator(each) for path, each in counts.items() if path.endswith(name))


def _by_operator(counts: dict[object, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for operator, flops in counts.items():
        found[str(operator).removeprefix("aten.")] += flops // 2
    return found


def of(counts: Counter[str], names: set[str]) -> int:
    return sum(count for name, count in counts.items() if name in names)


def dense(counted: Counter[str]) -> int:
    """Of a stack: SD 1.5's has convolutions for linear layers."""
    return of(counted, LINEAR | CONVOLUTION)


def corner(levels: int) -> TokenMask:
    mask = torch.zeros(SIDES)
    mask[:6, 1:5] = 1
    return token_mask(mask, levels)


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
@pytest.mark.parametrize("masked", [False, True])
def test_multiply_adds_are_those_that_torch_counts(networks: Networks, family: str, masked: bool) -> None:
    checkpoint, unet = networks(family)
    costs, mask = TokenCosts(unet), corner(len(unet.config.block_out_channels)) if masked else None
    counted, sizes = Counted(checkpoint, unet, mask), None if mask is None else mask.sizes
    found = costs.stacks(*SIDES, sizes, counted.prompt)
    assert [each.dense for each in found] == list(map(dense, counted.stacks))
    assert [each.score for each in found] == [of(each, SCORES) for each in counted.stacks]
    row = costs.row(*SIDES, sizes, counted.prompt)
    assert (row.dense, row.score) == (sum(each.dense for each in found), sum(each.score for each in found))
    in_stacks = sum(of(each, CONVOLUTION) for each in counted.stacks)
    assert row.cells * costs.convolutions == of(counted.whole, CONVOLUTION) - in_stacks


def test_masked_rows_cost_less_and_read_what_was_kept(networks: Networks) -> None:
    checkpoint, unet = networks("sdxl")
    costs, mask = TokenCosts(unet), corner(len(unet.config.block_out_channels))
    tensors = example(checkpoint, 1) | {"LATENTS": torch.randn(1, checkpoint.unet_channels, *SIDES)}
    inputs = arguments(tensors, CPU, torch.float32)
    with torch.no_grad(), TokenStacks(unet).recorded([0]) as values:
        DecoderHalf(unet)(inputs[2], *EncoderHalf(unet)(*inputs))
    whole, masked = costs.row(*SIDES), costs.row(*SIDES, mask.sizes)
    assert (whole.cached, masked.cached) == (0, sum(each[0].nbytes for each in values))
    assert whole.cells == masked.cells
    assert masked.dense < whole.dense
    assert masked.score < whole.score
    assert TokenCosts(unet, value_bytes=1).row(*SIDES, mask.sizes).cached == masked.cached / 4


def test_stacks_share_the_convolutions_before_them(networks: Networks) -> None:
    _, unet = networks("sdxl")
    shares = [each.cells for each in TokenCosts(unet).stacks(*SIDES)]
    assert all(share > 0 for share in shares)
    assert sum(shares) < SIDES[0] * SIDES[1], "what is left comes after the last stack"


def test_levels_of_uneven_sides_round_up(networks: Networks) -> None:
    _, unet = networks("sd15")
    levels = len(unet.config.block_out_channels)
    mask = token_mask(torch.ones(9, 7), levels)
    assert mask.is_full
    whole, masked = (TokenCosts(unet).row(9, 7, sizes) for sizes in (None, mask.sizes))
    assert (whole.dense, whole.score) == (masked.dense, masked.score)


def test_kept_projections_of_prompts_change_nothing(tmp_path: Path) -> None:
    unet = Checkpoint(checkpoints.sd15(tmp_path)).load_unet(CPU, torch.float32)
    before = TokenCosts(unet).stacks(*SIDES)
    PromptProjections(unet)
    assert TokenCosts(unet).stacks(*SIDES) == before


def test_rows_add_up() -> None:
    assert sum([Features(1, 2, 3, 4), Features(4, 3, 2, 1)], Features()) == Features(5, 5, 5, 5)
