"""Mask-aware runs: what they compute, keep and report; exact wherever nothing is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import checkpoints
from edits import LocalEdits, box
from swiftdiffusion.python_backends.common.errors import RequestError
from swiftdiffusion.python_backends.engine.run import Denoising
from swiftdiffusion.python_backends.engine.token_calls import token_call
from swiftdiffusion.python_backends.engine.token_lines import TokenLine
from swiftdiffusion.python_backends.engine.unet_calls import unet_calls
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from template_shards import FIELDS, SIZE, SMALL, STEPS

FULL, LARGE = box(*SIZE, 0, 0, *SIZE), box(*SIZE, 0, 0, 64, 60)


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> LocalEdits:
    return LocalEdits(Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl"))))


@pytest.fixture
def free(edits: LocalEdits) -> Iterator[int]:
    """All of the shard's room, before and after."""
    before = edits.token_runs.memory.free
    yield before
    assert edits.token_runs.memory.free == before


def begun(edits: LocalEdits, **fields: Any) -> Denoising:
    return edits.run(edits.parse(**FIELDS | fields))


def finished(edits: LocalEdits, run: Denoising) -> tuple[torch.Tensor, dict[str, Any]]:
    """Latents, and INFO's `editing`."""
    while not run.done:
        edits.step(run)
    assert run.token_run is not None
    report = run.token_run.report(run.steps)
    run.close()
    return run.latents, report


@pytest.fixture(scope="module")
def exact(edits: LocalEdits) -> torch.Tensor:
    """Latents of the small mask, all computed."""
    return edits.latents(edits.parse(**FIELDS))


def test_steps_that_compute_all_are_those_of_the_preset(edits: LocalEdits, exact: torch.Tensor, free: int) -> None:
    latents, report = finished(edits, begun(edits, MASK_AWARE="fast"))
    assert (report["mode"], report["source"]) == ("tokens", "own")
    assert report["exact_steps"] == [0, 1, 5, 9, 13, 17]
    assert report["mask"] == pytest.approx(6 * 6 / (16 * 24), abs=0.02)
    assert report["cache_error"] > 0
    assert edits.unet.stacks is not None and (blocks := len(edits.unet.stacks.levels))
    assert report["blocks_cached"] == {"mean": blocks, "of": blocks}
    assert not torch.equal(latents, exact)
    _, balanced = finished(edits, begun(edits, MASK_AWARE="balanced"))
    assert balanced["exact_steps"] == [0, 1, 4, 7, 10, 13, 16, 19]


def test_outside_the_mask_nothing_changes(edits: LocalEdits, exact: torch.Tensor, free: int) -> None:
    latents, _ = finished(edits, begun(edits, MASK_AWARE="fast"))
    outside = torch.from_numpy(SMALL[0, ::4, ::4] < 128)
    assert torch.equal(latents[..., outside], exact[..., outside])


def test_all_steps_exact_are_the_exact_bits(edits: LocalEdits, exact: torch.Tensor, free: int) -> None:
    asked = f'{{"source": "own", "exact_steps": {list(range(STEPS))}}}'
    latents, report = finished(edits, begun(edits, MASK_AWARE=asked))
    assert torch.equal(latents, exact) and report["mode"] == "exact"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"MASK_IMAGE": FULL}, "1.00 of the picture are masked"),
        ({"MASK_IMAGE": LARGE}, "0.62 of the picture are masked; up to 0.5 something is saved"),
        ({"STEPS": 15}, "15 steps taken are too few; 16 are enough"),
    ],
)
def test_where_nothing_is_gained_all_is_computed(
    edits: LocalEdits, fields: dict[str, Any], why: str, free: int
) -> None:
    given = FIELDS | fields
    latents, report = finished(edits, begun(edits, **fields, MASK_AWARE="fast"))
    assert torch.equal(latents, edits.latents(edits.parse(**given)))
    assert report["mode"] == "exact" and report["why"].startswith(why)


def test_without_room_all_is_computed(edits: LocalEdits, exact: torch.Tensor, free: int) -> None:
    memory = edits.token_runs.memory
    assert memory.take(free - 1000)
    latents, report = finished(edits, begun(edits, MASK_AWARE="fast"))
    assert torch.equal(latents, exact) and report["why"] == "the shard has no room for its tokens"
    memory.give_back(free - 1000)


def test_other_company_is_a_miss_and_two_exact_steps_a_line_again(edits: LocalEdits, free: int) -> None:
    run = begun(edits, MASK_AWARE="fast")
    while run.step < 7:
        edits.step(run)
    run.loras.current = (("another", 1.0),)
    _, report = finished(edits, run)
    assert report["exact_steps"] == [0, 1, 5, 7, 8, 9, 13, 17]


def test_runs_of_one_call_are_what_they_are_apart(edits: LocalEdits, free: int) -> None:
    masks = [SMALL, box(*SIZE, 33, 5, 57, 31), box(*SIZE, 1, 1, 60, 40)]
    asked = [{"MASK_IMAGE": mask, "MASK_AWARE": "fast", "SEED": seed} for seed, mask in enumerate(masks)]
    asked += [{"SEED": 9}]
    apart = [finished(edits, begun(edits, **each))[0] for each in asked[:3]]
    apart.append(edits.latents(edits.parse(**FIELDS | asked[3])))
    runs = [begun(edits, **each) for each in asked]
    assert edits.unet.stacks is not None
    sizes, shared = set(), 0
    while not runs[0].done:
        rows = [(run, half) for run in runs for half in run.halves]
        predictions: dict[Denoising, dict[int, torch.Tensor]] = {run: {} for run in runs}
        with torch.no_grad():
            for call in unet_calls(rows, {run: run.model_input() for run in runs}):
                masked = {row.sizes for row in call.tokens if row is not None}
                sizes |= masked
                shared += len(masked) > 1
                if call.tokens:
                    with token_call(edits.unet.stacks, call.tokens):
                        out = edits.unet.decode(edits.unet.encode(call.tensors, traced=False))
                else:
                    out = edits.unet.decode(edits.unet.encode(call.tensors))
                for (run, half), row in zip(call.rows, out.split(1), strict=True):
                    predictions[run][half] = row
        for run in runs:
            run.advance(predictions[run])
    assert shared and len(sizes) == 4, "three sizes of masks, and none where all is computed"
    for run, wanted in zip(runs, apart, strict=True):
        assert (run.latents - wanted).abs().max() < 1e-3 * wanted.abs().max()
        run.close()


def test_of_a_row_that_failed_nothing_is_kept(edits: LocalEdits, free: int) -> None:
    run = begun(edits, MASK_AWARE="fast")
    (call,) = unet_calls([(run, half) for half in run.halves], {run: run.model_input()})
    assert edits.unet.stacks is not None and run.token_run is not None
    with torch.no_grad(), token_call(edits.unet.stacks, call.tokens) as failures:
        edits.unet.decode(edits.unet.encode(call.tensors, traced=False))
        failures[0] = RequestError("the ControlNet is gone")
    assert [bool(taken) for taken in run.token_run._taken] == [False, True]
    finished(edits, run)


def test_who_computes_all_is_not_kept_on_a_shard(edits: LocalEdits, free: int) -> None:
    aware, full = begun(edits, MASK_AWARE="fast"), begun(edits, MASK_AWARE="fast", MASK_IMAGE=FULL)
    assert (aware.is_mask_aware, full.is_mask_aware) == (True, False)
    both = [(run, half) for run in (aware, full) for half in run.halves]
    calls = unet_calls(both, {run: run.model_input() for run in (aware, full)})
    assert {call.rows[0][0]: len(call.tokens) for call in calls} == {aware: 2, full: 0}


def test_runs_that_shared_a_call_share_no_memory(edits: LocalEdits, free: int) -> None:
    runs = [begun(edits, MASK_AWARE="fast", SEED=seed) for seed in range(2)]
    rows = [(run, half) for run in runs for half in run.halves]
    (call,) = unet_calls(rows, {run: run.model_input() for run in runs})
    assert edits.unet.stacks is not None
    with torch.no_grad(), edits.unet.stacks.recorded([0, 2]) as values:
        edits.unet.decode(edits.unet.encode(call.tensors, traced=False))
    assert all(each.untyped_storage().nbytes() == each.nbytes for rows in values for each in rows)


def test_a_line_goes_through_what_it_was_given() -> None:
    line, where = TokenLine(), [torch.ones(3, 1)]
    first, second = torch.randn(3, 2), torch.randn(3, 2)
    line.keep(1, [first.clone()], where)
    assert not line.reaches(2)
    line.keep(3, [second.clone()], where)
    assert line.reaches(4)
    out = torch.empty(3, 2)
    for step, wanted in ((1, first), (3, second), (5, 2 * second - first)):
        line.at(step, 0, out)
        assert torch.allclose(out, wanted, atol=1e-6)
    line.keep(5, [2 * second - first], where)
    assert line.error is not None and float(line.error) == pytest.approx(0, abs=1e-6)
    line.forget()
    assert not line.reaches(6) and not line._last
