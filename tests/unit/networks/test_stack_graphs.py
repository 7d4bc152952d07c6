"""A UNet whose calls are captured gives the bits of its modules: all tokens, a mask's, each row with its LoRAs.

On tapes in place of a GPU, which know no streams: see `tape.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

import checkpoints
import lora_files
from edits import LocalEdits
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.lora_set import LoraSet
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks import runtimes
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from swiftdiffusion.python_backends.networks.stack_graphs import StackGraphs
from swiftdiffusion.python_backends.networks.token_masks import token_mask
from swiftdiffusion.python_backends.networks.token_stacks import MaskedRows, Values
from swiftdiffusion.python_backends.networks.unet import UNet, example
from swiftdiffusion.python_backends.networks.unet_halves import residual_size
from swiftdiffusion.python_backends.shared_memory.host_cache import HostCache
from tape import Tape
from template_shards import TemplateShard

CPU = torch.device("cpu")


class Pair(NamedTuple):
    checkpoint: Checkpoint
    plain: UNet
    captured: UNet
    tapes: list[Tape]

    @property
    def recorded(self) -> int:
        """Pieces, of all."""
        return sum(tape.recorded for tape in self.tapes)


def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """From now on networks are captured on these."""
    made: list[Tape] = []

    def make(device: torch.device) -> Tape:
        made.append(Tape(device))
        return made[-1]

    monkeypatch.setitem(runtimes.RECORDERS, "cpu", make)
    return made


@pytest.fixture(scope="module", params=["sdxl", "sd15", "sdxl in 8 bits"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    family, _, rest = request.param.partition(" ")
    checkpoint = Checkpoint(getattr(checkpoints, family)(tmp_path_factory.mktemp(family), depth=2))
    runtime = Runtime(fp8=bool(rest))
    plain = UNet(checkpoint, CPU, torch.float32, runtime)
    with pytest.MonkeyPatch.context() as patch:
        made = tapes(patch)
        captured = UNet(checkpoint, CPU, torch.float32, runtime)
    return Pair(checkpoint, plain, captured, made)


def inputs(checkpoint: Checkpoint, rows: int, seed: int, side: int = 8) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(each.shape, generator=random).abs() for name, each in example(checkpoint, rows).items()
    }
    return tensors | {"LATENTS": torch.randn(rows, checkpoint.unet_channels, side, side, generator=random)}


def predicted(unet: UNet, tensors: dict[str, torch.Tensor], weights: str | None = "none") -> torch.Tensor:
    return unet.decode(unet.encode(tensors, weights, traced=False))


def parts(unet: UNet, values: Values, side: int, *ranges: tuple[int, int, int]) -> list[MaskedRows]:
    """Rows from one to another, with a square mask of this edge; none is all. What is known was recorded of 4 rows."""
    assert unet.stacks is not None
    made = []
    for begin, end, edge in ranges:
        mask = torch.zeros(side, side)
        mask[1 : 1 + edge, 2 : 2 + edge] = 1
        places = token_mask(mask, 1 + max(unet.stacks.levels)).places if edge else {}

        def known(number: int, out: torch.Tensor, begin: int = begin, end: int = end) -> torch.Tensor:
            return out.copy_(torch.stack(values[number][begin:end]))

        rows = slice(begin, end)
        repeated = {key: each.repeat(end - begin, 1) for key, each in places.items()}
        made.append(MaskedRows(rows, repeated, known) if edge else MaskedRows(rows))
    return made


def masked(
    unet: UNet, checkpoint: Checkpoint, seed: int, side: int, *ranges: tuple[int, int, int]
) -> list[torch.Tensor]:
    """A prediction by what other inputs gave, and what the first row gave, which is recorded if it computes all."""
    rows, kept = ranges[-1][1], [0] if not ranges[0][2] else []
    assert unet.stacks is not None
    with unet.stacks.recorded(range(rows)) as values:
        predicted(unet, inputs(checkpoint, rows, seed, side))
    with unet.stacks.recorded(kept) as own, unet.stacks.masked(parts(unet, values, side, *ranges)):
        found = predicted(unet, inputs(checkpoint, rows, seed + 1, side))
    return [found, *(each for block in own for each in block), *(each for block in values for each in block)]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_all_tokens_of_every_batch_as_prompts_come_and_go(pair: Pair) -> None:
    for rows, seed, side in ((2, 0, 8), (1, 1, 8), (3, 2, 8), (2, 3, 11), (2, 0, 8), (1, 4, 8), (2, 0, 8)):
        tensors = inputs(pair.checkpoint, rows, seed, side)
        wanted = pair.plain(tensors)
        for weights in ("none", None, "none", "others"):
            assert torch.equal(pair.captured(tensors, weights), wanted)
        encoded, modules = pair.captured.encode(tensors, "none"), pair.plain.encode(tensors)
        residuals = torch.randn(rows, residual_size(encoded.halfway), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(pair.captured.decode(encoded, residuals), pair.plain.decode(modules, residuals))


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 2, 3)],
        [(0, 1, 0)],
        [(0, 1, 0), (1, 3, 2), (3, 4, 4)],
        [(0, 2, 4), (2, 4, 5)],
    ],
)
def test_masked_tokens_of_rows_in_any_company(pair: Pair, ranges: list[tuple[int, int, int]]) -> None:
    for seed, side in ((0, 8), (2, 8), (4, 11), (0, 8)):
        of = pair.checkpoint, seed, side, *ranges
        assert same(masked(pair.plain, *of), masked(pair.captured, *of))


def test_what_was_captured_serves_rows_and_entries_of_others(pair: Pair) -> None:
    ranges = [(0, 1, 0), (1, 3, 2), (3, 4, 4)]
    for _ in range(2):
        masked(pair.captured, pair.checkpoint, 0, 8, *ranges)
    before = pair.recorded
    for seed in (6, 7):
        of = pair.checkpoint, seed, 8, *ranges
        assert same(masked(pair.plain, *of), masked(pair.captured, *of))
    assert pair.recorded == before
    moved = pair.checkpoint, 8, 8, (0, 1, 0), (1, 2, 4), (2, 4, 2)  # the same groups, at other places in the batch
    assert same(masked(pair.plain, *moved), masked(pair.captured, *moved))
    assert pair.recorded == before


def test_a_mask_costs_graphs_of_stacks_alone_when_it_comes_again(pair: Pair) -> None:
    assert pair.plain.stacks is not None
    for _ in range(2):
        masked(pair.captured, pair.checkpoint, 0, 8, (0, 2, 2))
    wanted = masked(pair.plain, pair.checkpoint, 0, 8, (0, 2, 6))
    for more in (0, len(pair.plain.stacks.blocks), 0):
        before = pair.recorded
        assert same(masked(pair.captured, pair.checkpoint, 0, 8, (0, 2, 6)), wanted)
        assert pair.recorded - before == more


def test_memory_of_stacks_is_taken_once_and_graphs_are_made_anew_when_it_moves(pair: Pair) -> None:
    assert pair.captured.stacks is not None
    _, calls = pair.captured.stacks._stacks[0]
    assert isinstance(calls, StackGraphs)
    scratch, of = calls._scratch, (pair.checkpoint, 0, 8, (0, 2, 4))
    wanted = masked(pair.plain, *of)
    for _ in range(3):
        assert same(masked(pair.captured, *of), wanted)
    memory, before = scratch.memory, pair.recorded
    assert same(masked(pair.captured, *of), wanted)
    assert scratch.memory is memory and pair.recorded == before
    scratch.take([torch.empty(memory.numel() + 1, dtype=torch.uint8, device="meta")])
    assert scratch.memory is not memory
    for _ in range(3):
        assert same(masked(pair.captured, *of), wanted)
    assert pair.recorded > before


def test_rows_have_loras_of_their_own(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory, shapes = tmp_path_factory.mktemp("loras"), BaseModules.of(pair.checkpoint).shapes["unet"]
    attention = {name: shape for name, shape in shapes.items() if "attn" in name}
    read = Canonicaliser(pair.checkpoint).read
    loras = {
        f"{seed:016x}": read(lora_files.kohya({"unet": attention}, seed=seed).save(directory / f"{seed}.safetensors"))
        for seed in (1, 2)
    }
    a, b = (((key, 0.8),) for key in loras)
    orders: list[list[LoraSet]] = [[a, (), b, a], [b, a, a, ()], [], [(), b, a, a]]
    for seed, sets in enumerate(orders):
        found = []
        for unet in (pair.plain, pair.captured):
            assert unet.beside is not None
            unet.beside.use(sets, loras.__getitem__)
            found.append(masked(unet, pair.checkpoint, seed, 8, (0, 1, 0), (1, 3, 2), (3, 4, 4)))
            found[-1].append(unet(inputs(pair.checkpoint, 4, seed), repr(sets)))
            unet.beside.use([], loras.__getitem__)
        assert same(*found)


def test_mask_aware_requests_have_the_same_latents(tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint, latents, reports = Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl"))), [], []
    for is_captured in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if is_captured:
                tapes(patch)
            edits = LocalEdits(checkpoint)
        entries = HostCache(tmp_path_factory.mktemp("entries"), 2**28)
        shard = TemplateShard(edits, (entries,))
        asked = [
            {"MASK_AWARE": "fast"},
            {},
            {"MASK_AWARE": "fast", "SEED": 5},
            {"MASK_AWARE": "balanced", "PROMPT": "a dog"},
        ]
        made = [shard.edit(**fields) for fields in asked]
        latents.append([each for each, _ in made])
        reports.append([report for _, report in made])
    assert same(*latents)
    assert reports[0] == reports[1]
    assert [report["source"] for report in reports[0] if report] == ["own", "template", "template"]
