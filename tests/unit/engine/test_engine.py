"""A shard's engine without a server: what becomes of the runs that it is told of, and of what others ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lone_shard import PIXELS, SIDE, TEN, Lender, LoneShard, alone, equal, make_run, predicted, until
from model_process import logged, own_metrics, told

from processes import other_process
from swiftdiffusion.python_backends.common.errors import ControlNetDownError, ControlNetUnavailableError
from swiftdiffusion.python_backends.engine import engine as engine_module
from swiftdiffusion.python_backends.engine import published as published_module
from swiftdiffusion.python_backends.engine.row_costs import RowCosts
from swiftdiffusion.python_backends.engine.token_memory import TokenMemory
from swiftdiffusion.python_backends.engine.token_runs import TokenRun
from swiftdiffusion.python_backends.engine.unet_calls import UNetCall, unet_calls
from swiftdiffusion.python_backends.networks.token_masks import token_mask
from swiftdiffusion.python_backends.request.mask_aware import MaskAware


def call_from_elsewhere(controlnets: int = 0) -> UNetCall:
    """Of a run of another shard, which keeps it to itself."""
    run = make_run("elsewhere", controlnets=controlnets)
    (call,) = unet_calls([(run, half) for half in run.halves], {run: run.model_input()})
    return replace(call, rows=())


# Runs.


@pytest.mark.parametrize("scheduler", ["euler", "dpmpp_2m_sde_karras", "lcm"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_run_comes_to_what_its_sampler_does_alone(shard: LoneShard, scheduler: str, guidance: float) -> None:
    run, again = (make_run("a", guidance=guidance, scheduler=scheduler) for _ in range(2))
    shard.submit(run)
    ((state, latents),) = shard.ends(run)
    assert (state.step, state.of, state.shape) == (4, 4, (1, 4, SIDE, SIDE))
    assert state.info is not None
    assert (state.info["unet_evaluations"], state.info["shards"]) == (4, ["shard"])
    assert latents is not None
    assert torch.equal(latents, alone(again))


def test_runs_of_all_kinds_share_steps_and_each_comes_to_the_same(shards: Callable[..., LoneShard]) -> None:
    kinds: list[dict[str, Any]] = [
        {"steps": 6},
        {"steps": 3, "guidance": 1.0},
        {"steps": 5, "width": 8},
        {"steps": 4, "scheduler": "lcm"},
    ]
    runs, again = ([make_run(str(number), **kind) for number, kind in enumerate(kinds)] for _ in range(2))
    with own_metrics():
        shard = shards()
        shard.submit_together(*runs)
        assert equal(shard.done(*runs), map(alone, again))
    assert [run.report.largest_batch for run in runs] == [4, 4, 4, 4]
    sizes = told["swiftdiffusion_denoiser_batch_size"]["tiny"]
    assert (max(sizes), sum(sizes)) == (4, 6 + 3 + 5 + 4)


def test_no_more_share_a_step_than_there_are_places(shards: Callable[..., LoneShard]) -> None:
    shard, runs = shards(places=2), [make_run(each) for each in "abc"]
    shard.submit_together(*runs)
    assert equal(shard.done(*runs), (alone(make_run(each)) for each in "abc"))
    assert max(len(call.rows) for call in shard.network.calls) == 4


class Thirds(RowCosts):
    """Says that calls that leave tokens out, or keep them, take as long as a third of their rows."""

    def work(self, call: UNetCall) -> int:
        return call.work // 3 if call.tokens else call.work


def test_steps_that_leave_tokens_out_teach_of_what_takes_as_long(shard: LoneShard) -> None:
    shard.network.row_costs = Thirds(None)
    run, again = make_run("a"), make_run("a")
    mask = token_mask(torch.eye(SIDE)[:1].T @ torch.eye(SIDE)[:1], 1)
    run.token_run = TokenRun(mask, MaskAware("own", (0, 1)), run.steps, TokenMemory(10**6), (0,))
    shard.submit(run)
    assert equal(shard.done(run), [alone(again)])
    assert shard.times.knows(2 * PIXELS // 3)


def test_what_has_ended_is_told_once(shard: LoneShard) -> None:
    run = make_run("a")
    assert shard.state(run) is None
    shard.submit(run)
    assert shard.state(run) is not None
    shard.done(run)
    assert shard.state(run) is None
    assert shard.counted == [run]


def test_a_step_that_hangs_is_overdue_and_a_first_one_may_take_its_time(
    shard: LoneShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "HANGS_S", 0.05)
    for name, overdue in (("first", False), ("second", True)):
        run = make_run(name)
        with shard.network.held:
            shard.submit(run)
            shard.network.begin()
            time.sleep(0.3)
            assert (shard.seen.overdue_s > 0, shard.seen.idle_s) == (overdue, 0)
        shard.done(run)
        shard.network.calls.clear()
    until(lambda: shard.seen.idle_s > 0)
    assert shard.seen.overdue_s == 0


def test_a_run_whose_controlnet_is_down_takes_its_step_again_and_the_others_go_on(shard: LoneShard) -> None:
    waiting, other = make_run("a"), make_run("b", steps=6)
    shard.network.failing_runs[waiting] = ControlNetDownError('CONTROLNETS names "edges": down')
    shard.submit_together(waiting, other)
    assert equal(shard.done(other), [alone(make_run("b", steps=6))])
    assert waiting.step == 0
    shard.network.failing_runs.clear()
    assert equal(shard.done(waiting), [alone(make_run("a"))])


def test_a_run_that_is_given_up_leaves_its_place_and_the_others_go_on(shard: LoneShard) -> None:
    given_up, other = make_run("a"), make_run("b")
    with shard.network.held:
        shard.submit(given_up, other)
        shard.network.begin()
        shard.engine.forget(["a"])
    assert equal(shard.done(other), [alone(make_run("b"))])
    assert given_up.step == 1
    assert shard.state(given_up) is None
    assert shard.counted == [given_up, other]
    assert shard.engine.quote(TEN).idle


def test_a_run_whose_denoiser_has_died_leaves_and_one_that_nobody_asks_after_goes_on(
    shard: LoneShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_module, "SILENT_AFTER_S", 0.01)
    with other_process("") as denoiser:
        pass
    lost, other = make_run("a"), make_run("b")
    with shard.network.held:
        shard.submit(lost, sender=denoiser.pid)
        shard.submit(other)
        shard.network.begin()
        time.sleep(0.1)
    until(lambda: other.done and shard.engine.quote(TEN).idle)
    assert lost.step < other.steps
    assert shard.state(lost) is None
    assert equal(shard.done(other), [alone(make_run("b"))])


def test_who_polls_is_told_when_to_look_again(shard: LoneShard) -> None:
    for rows in (1, 2, 4):
        shard.times.note(rows * PIXELS, 10.0 * rows)
    shard.times.note(2 * PIXELS, 90.0, 2 * PIXELS)
    for run, step_s in ((make_run("a"), 20.0), (make_run("b", controlnets=1), 90.0)):
        shard.network.calls.clear()
        shard.network.seconds = step_s
        with shard.network.held:
            shard.submit(run)
            shard.network.begin()
            polled, _ = shard.engine.poll([run.request.run_id])
        assert step_s - 10.0 < polled.boundary_s <= step_s
        shard.done(run)


# Failures.


def test_a_call_that_fails_ends_its_own_runs_alone(shard: LoneShard) -> None:
    logged.clear()
    shard.network.failing[8] = ValueError("a secret path")
    failing, fine = make_run("a", width=8), make_run("b")
    shard.submit_together(fine, failing)
    (error,) = shard.errors(failing)
    assert failing.report.largest_batch == 2
    assert (error["type"], "secret" in error["message"]) == ("UnexpectedError", False)
    assert any("a secret path" in each for each in logged)
    assert equal(shard.done(fine), [alone(make_run("b"))])


def test_a_row_that_fails_ends_its_run_alone(shard: LoneShard) -> None:
    failing, fine = make_run("a", guidance=1.0), make_run("b", guidance=1.0)
    shard.network.failing_runs[failing] = ControlNetUnavailableError("edges gave no answer")
    shard.submit_together(fine, failing)
    assert shard.errors(failing) == [{"type": "ControlNetUnavailableError", "message": "edges gave no answer"}]
    assert failing.report.largest_batch == 2
    assert equal(shard.done(fine), [alone(make_run("b", guidance=1.0))])


def test_a_step_that_fails_ends_its_batch_and_the_thread_goes_on(shard: LoneShard) -> None:
    shard.network.failing_step = RuntimeError("no memory")
    failing, later = make_run("a"), make_run("b")
    shard.submit(failing)
    assert [error["type"] for error in shard.errors(failing)] == ["UnexpectedError"]
    assert shard.counted == [failing]
    shard.submit(later)
    assert equal(shard.done(later), [alone(make_run("b"))])


# Rows of other shards.


def test_an_idle_shard_lends_itself_to_one_at_a_time_until_it_has_runs(shard: LoneShard) -> None:
    call = call_from_elsewhere()
    evaluated = shard.engine.evaluate("other", call)
    assert evaluated is not None
    assert torch.equal(evaluated.prediction, predicted(call))
    assert shard.engine.lend("other", seconds=60.0)
    assert not shard.engine.lend("third")
    assert shard.engine.evaluate("third", call) is None
    with shard.network.held:
        shard.submit(make_run("a"))
        assert not shard.engine.lend("other")
        assert shard.engine.evaluate("other", call) is None
    until(lambda: shard.engine.lend("other"))


def test_a_shard_that_is_not_asked_for_a_while_may_be_lent_to_another(shard: LoneShard) -> None:
    assert shard.engine.lend("other", seconds=0.0)
    assert shard.engine.lend("third")


def test_evaluations_for_others_teach_what_steps_take(shard: LoneShard) -> None:
    assert shard.engine.quote(TEN).seconds == 0.0
    shard.network.seconds = 3.0
    shard.engine.evaluate("other", call_from_elsewhere())
    until(lambda: shard.engine.quote(TEN).seconds == pytest.approx(30.0))
    shard.network.seconds = 5.0
    shard.engine.evaluate("other", call_from_elsewhere(controlnets=1))
    until(lambda: shard.engine.quote(replace(TEN, control_rows=(10, 10))).seconds == pytest.approx(50.0))
    assert shard.engine.quote(TEN).seconds == pytest.approx(30.0)


def test_an_evaluation_that_fails_is_the_other_shards_to_tell(shard: LoneShard) -> None:
    shard.network.failing[SIDE] = ControlNetUnavailableError("edges gave no answer")
    with pytest.raises(ControlNetUnavailableError, match="edges"):
        shard.engine.evaluate("other", call_from_elsewhere())
    assert shard.engine.quote(TEN).seconds == 0.0  # what fails at once is no measure
    shard.network.failing.clear()
    shard.network.failing_step = RuntimeError("the device is gone")
    with pytest.raises(RuntimeError, match="device"):
        shard.engine.evaluate("other", call_from_elsewhere())
    shard.engine.evaluate("other", replace(call_from_elsewhere(), pixels=0))
    run = make_run("a")
    shard.submit(run)
    assert equal(shard.done(run), [alone(make_run("a"))])


def test_a_lone_run_has_half_of_its_rows_evaluated_elsewhere(shards: Callable[..., LoneShard]) -> None:
    lender = shards("lender")
    shard, run, last = shards(peers=Lender(lender)), make_run("a"), make_run("b")
    shard.submit(run)
    assert equal(shard.done(run), [alone(make_run("a"))])
    assert run.report.shards == {"shard", "lender"}
    assert [len(call.loras) for call in (*shard.network.calls, *lender.network.calls)] == [1] * 8
    with lender.network.held:
        lender.submit(make_run("its own"))
        shard.submit(last)
        assert equal(shard.done(last), [alone(make_run("b"))])
    assert last.report.shards == {"shard"}
