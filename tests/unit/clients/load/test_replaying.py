"""The open loop and what it reports."""

import asyncio
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from swiftdiffusion.clients import (
    GenerationInfo,
    LoraReport,
    LoraUnavailable,
    RequestTimeout,
    ServerFailure,
    ServerUnavailable,
    ServerUnreachable,
    SwiftDiffusionError,
)
from swiftdiffusion.clients.cli import app
from swiftdiffusion.clients.load.open_loop import replay, solo_seconds
from swiftdiffusion.clients.load.outcomes import Outcome, Status, status_of
from swiftdiffusion.clients.load.plot import plot
from swiftdiffusion.clients.load.report import show, summarise
from swiftdiffusion.clients.load.served import Served, places
from swiftdiffusion.clients.load.trace import Trace, TracedLora, TracedRequest


def traced(at: float, **fields: object) -> TracedRequest:
    return TracedRequest(at=at, prompt="a cat", seed=1, **fields)


def test_requests_are_sent_at_their_times_whatever_is_in_flight() -> None:
    sent: list[float] = []

    async def run() -> list[Outcome]:
        all_sent = asyncio.Event()

        async def send(request: TracedRequest) -> GenerationInfo:
            sent.append(time.monotonic())
            if len(sent) == 5:
                all_sent.set()
            await all_sent.wait()
            return GenerationInfo(seed=request.seed)

        return await replay([traced(at) for at in (0.0, 0.2, 0.4, 0.4, 0.6)], send, rate_scale=2)

    start = time.monotonic()
    outcomes = asyncio.run(run())
    assert (np.array(sent) - start >= [0, 0.1, 0.2, 0.2, 0.3]).all()
    assert [outcome.at for outcome in outcomes] == [0.0, 0.1, 0.2, 0.2, 0.3]
    assert summarise(outcomes, 1).most_in_flight == 5


def test_latency_counts_from_the_trace_where_the_client_is_late() -> None:
    async def send(request: TracedRequest) -> None:
        time.sleep(0.2)  # nothing else of this process runs

    outcomes = asyncio.run(replay([traced(0.0), traced(0.05), traced(0.1)], send))
    assert (np.array([outcome.seconds for outcome in outcomes]) >= [0.2, 0.35, 0.5]).all()
    assert (np.array([outcome.late for outcome in outcomes]) >= [0.0, 0.15, 0.3]).all()


def test_errors_of_the_server_are_outcomes_and_others_are_not() -> None:
    async def send(request: TracedRequest) -> None:
        raise ServerUnavailable("no place is free")

    (outcome,) = asyncio.run(replay([traced(0.0)], send))
    assert (outcome.status, outcome.sentence) == (Status.REFUSED, "no place is free")

    async def broken(request: TracedRequest) -> None:
        raise ValueError("not the server's")

    with pytest.raises(ExceptionGroup):
        asyncio.run(replay([traced(0.0)], broken))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ServerUnavailable, Status.REFUSED),
        (ServerUnreachable, Status.FAILED),
        (LoraUnavailable, Status.FAILED),
        (ServerFailure, Status.FAILED),
        (RequestTimeout, Status.TIMED_OUT),
    ],
)
def test_what_an_error_means(error: type[SwiftDiffusionError], status: Status) -> None:
    assert status_of(error("…")) is status


def test_requests_alone_have_no_loras_and_come_one_by_one() -> None:
    seen: list[TracedRequest] = []

    async def send(request: TracedRequest) -> None:
        seen.append(request)
        await asyncio.sleep(0.02 if len(seen) > 1 else 0.3)

    asked = [traced(0.0, controlnets=(number,), loras=(TracedLora(rank=number),)) for number in range(9)]
    assert 0.02 <= asyncio.run(solo_seconds(asked, send)) < 0.3
    assert [request.controlnets for request in seen] == [(0,), (0,), (1,), (2,), (3,), (4,)]
    assert not any(request.loras for request in seen)


def lora(source: str, step: int) -> LoraReport:
    return LoraReport(name="ink", source=source, patched_at_step=step)


def test_a_report_in_numbers() -> None:
    outcomes = [
        Outcome(0.0, 0.0, 1.0, Status.OK, loras=(lora("gpu", 0), lora("remote", 3))),
        Outcome(1.0, 0.001, 3.0, Status.OK, loras=(lora("gpu", 0),)),
        Outcome(2.0, 0.0, 0.01, Status.REFUSED, "no place is free"),
        Outcome(4.0, 0.0, 1.5, Status.OK, loras=(lora("host", 0),)),
        Outcome(5.0, 0.0, 5.0, Status.TIMED_OUT, "too late"),
    ]
    report = summarise(outcomes, 2.0)
    assert report.counts == {"ok": 3, "refused": 1, "timed out": 1, "failed": 0}
    assert report.sentences == {"no place is free": 1, "too late": 1}
    assert (report.seconds, report.offered) == (10.0, 1.0)
    assert (report.throughput, report.goodput, report.slo_ms) == (0.3, 0.2, 2000)
    assert (report.attainment, report.attainment_of_admitted) == (2 / 5, 2 / 4)
    assert report.latency_ms == {"p50": 1500, "p95": 3000, "p99": 3000, "mean": pytest.approx(5500 / 3)}
    assert report.refusal_ms is not None
    assert report.refusal_ms["p99"] == pytest.approx(10)
    assert report.lora_sources == {"gpu": 0.5, "host": 0.25, "remote": 0.25}
    assert (report.late_loras, report.mean_patched_at_step) == (0.25, 0.75)
    assert report.most_in_flight == 2
    assert json.loads(json.dumps(report.as_json()))["latency_ms"]["mean"] == 1833.3333


def test_sentences_that_differ_in_numbers_alone_are_one_reason() -> None:
    late = [f"the request would be done in {ms} ms; TIMEOUT_MS allows 900 ms" for ms in (901, 1200.5, 9)]
    down = ["unet_shard0: down", "unet_shard1: down"]
    report = summarise([Outcome(0.0, 0.0, 1.0, Status.REFUSED, sentence) for sentence in [*down, *late]], 1.0)
    assert report.sentences == {late[0]: 3, down[0]: 1, down[1]: 1}
    printed = io.StringIO()
    show(Console(file=printed), report, "…")
    assert f"3 × {late[0]}\n" in printed.getvalue()


outcome_lists = st.lists(
    st.builds(
        Outcome,
        at=st.floats(0, 100),
        late=st.floats(0, 1),
        seconds=st.floats(0.001, 50),
        status=st.sampled_from(Status),
        sentence=st.sampled_from(("", "no place is free", "done in 7 ms", "done in 80 ms")),
    ),
    min_size=1,
    max_size=60,
)


@given(outcome_lists, st.floats(0, 50))
def test_reports_add_up(outcomes: list[Outcome], slo: float) -> None:
    report = summarise(outcomes, slo)
    assert sum(report.counts.values()) == report.requests == len(outcomes)
    assert sum(report.sentences.values()) == report.requests - report.counts["ok"]
    assert report.goodput <= report.throughput
    assert report.goodput * report.seconds == pytest.approx(report.attainment * report.requests)
    assert 1 <= report.most_in_flight <= report.requests
    assert (report.attainment_of_admitted is None) == (report.counts["refused"] == report.requests)
    assert report.attainment_of_admitted is None or report.attainment_of_admitted >= report.attainment
    pictures = sorted(1000 * each.seconds for each in outcomes if each.status is Status.OK)
    assert (report.latency_ms is None) == (not pictures)
    if report.latency_ms is not None:
        assert report.latency_ms["p50"] <= report.latency_ms["p95"] <= report.latency_ms["p99"]
        for percent in (50, 95, 99):
            share = np.mean(np.array(pictures) <= report.latency_ms[f"p{percent}"])
            assert report.latency_ms[f"p{percent}"] in pictures
            assert share >= percent / 100
    show(Console(quiet=True), report, "…")


def test_no_requests_are_no_report() -> None:
    with pytest.raises(ValueError, match="no requests"):
        summarise([], 1.0)


def test_a_replay_is_drawn_with_and_without_pictures(tmp_path: Path) -> None:
    outcomes = [Outcome(at, 0.0, 1.0, Status.REFUSED) for at in (0.0, 1.0)]
    plot(outcomes, 2.0, tmp_path / "refused.png", "…")
    plot([*outcomes, Outcome(2.0, 0.0, 1.0, Status.OK)], 2.0, tmp_path / "new" / "some.png", "…")
    assert (tmp_path / "new" / "some.png").stat().st_size > (tmp_path / "refused.png").stat().st_size > 5000


@given(st.lists(st.integers(0, 50), max_size=4, unique=True), st.integers(0, 5))
def test_ranks_find_different_places(ranks: list[int], count: int) -> None:
    found = places(ranks, count)
    assert len(set(found)) == len(found) == min(len(ranks), count)
    assert all(0 <= place < count for place in found)
    assert not found or found[0] == ranks[0] % count


def test_a_servers_own_adapters_stand_for_the_traces() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    served = Served(("ink", "night"), (("edges", image), ("layout", image)))
    loras = (TracedLora(rank=3, scale=0.5), TracedLora(rank=5, scale=0.7))
    request = served.request(traced(0.0, steps=4, controlnets=(2,), loras=loras), lora_bound=2, timeout_ms=900)
    assert [(each.name, each.scale) for each in request.loras] == [("night", 0.5), ("ink", 0.7)]
    assert [each.name for each in request.controlnets] == ["edges"]
    assert (request.steps, request.seed, request.lora_bound, request.timeout_ms) == (4, 1, 2, 900)
    bare = Served().request(traced(0.0, controlnets=(2,), loras=loras), lora_bound=2)
    assert (bare.loras, bare.controlnets, bare.control_images, bare.lora_bound) == ((), (), (), None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--slo-ms", "9", "--slo-factor", "2"], "--slo-ms and --slo-factor exclude each other"),
        (["--controlnet", "edges"], "--controlnet is 'edges'; wanted: NAME=IMAGE"),
    ],
)
def test_bad_options_are_explained(tmp_path: Path, options: list[str], told: str) -> None:
    Trace({}, (traced(0.0),)).write(tmp_path / "trace.jsonl")
    result = CliRunner().invoke(app, ["replay", str(tmp_path / "trace.jsonl"), *options], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert told in result.output


def test_a_trace_without_requests_is_refused(tmp_path: Path) -> None:
    Trace({}, ()).write(tmp_path / "trace.jsonl")
    result = CliRunner().invoke(app, ["replay", str(tmp_path / "trace.jsonl")], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert "has no requests" in result.output


def test_no_server_is_said_in_a_sentence(tmp_path: Path) -> None:
    Trace({}, (traced(0.0),)).write(tmp_path / "trace.jsonl")
    result = CliRunner().invoke(app, ["replay", str(tmp_path / "trace.jsonl"), "--url", "grpc://127.0.0.1:1"])
    assert result.exit_code == 1
    assert "no server answers at grpc://127.0.0.1:1" in result.output
