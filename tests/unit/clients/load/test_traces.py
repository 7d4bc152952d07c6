"""Traces: the published statistics hold, equal arguments give equal bytes, files are read as they were written."""

from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from swiftdiffusion.clients.cli import app
from swiftdiffusion.clients.load.adapters import KINDS, Kind, lru_loads
from swiftdiffusion.clients.load.arrivals import Burst, draw_arrivals, draw_bursts
from swiftdiffusion.clients.load.drawing import RandomBursts, TraceArguments, draw_trace, sets_of, statistics_of
from swiftdiffusion.clients.load.popularity import invocation_shares
from swiftdiffusion.clients.load.published import SERVICES
from swiftdiffusion.clients.load.trace import Trace, TracedLora, TracedRequest, TraceError, read_trace

PROMPTS = ("a red circle", "a cat")
DIGEST = "82ac3e8f39c927ea28eb4bbdaacc0b00a2036bd14b2508dd28037329bda970d8"


@pytest.fixture(scope="module", params=SERVICES)
def drawn(request: pytest.FixtureRequest) -> tuple[str, Trace]:
    """About 20,000 requests of a service."""
    return request.param, draw_trace(TraceArguments(request.param, rate=100, seconds=200, seed=3), PROMPTS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("service", SERVICES)
def test_published_numbers_are_consistent(service: str, kind: Kind) -> None:
    statistics = statistics_of(service, kind)
    assert sum(statistics.per_request) == pytest.approx(1)
    shares = invocation_shares(statistics)
    assert len(shares) == statistics.population
    assert shares.sum() == pytest.approx(1)
    assert all(earlier >= later - 1e-12 for earlier, later in pairwise(shares))
    assert all(earlier >= later for earlier, later in pairwise(statistics.lru_loads))
    assert statistics.lru_loads[0] <= statistics.mean_per_request


@pytest.mark.parametrize("kind", KINDS)
def test_requests_have_as_many_adapters_as_published(drawn: tuple[str, Trace], kind: Kind) -> None:
    service, trace = drawn
    sets = sets_of(trace, kind)
    assert all(len(set(used)) == len(used) for used in sets)
    for number, share in enumerate(statistics_of(service, kind).per_request):
        assert np.mean([len(used) == number for used in sets]) == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_popular_have_their_published_share(drawn: tuple[str, Trace], kind: Kind) -> None:
    service, trace = drawn
    ranks = np.array([rank for used in sets_of(trace, kind) for rank in used])
    for count, share in statistics_of(service, kind).invocations:
        assert np.mean(ranks < count) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_caches_of_ten_and_fewer_load_as_often_as_published(drawn: tuple[str, Trace], kind: Kind) -> None:
    service, trace = drawn
    published = statistics_of(service, kind).lru_loads
    assert lru_loads(sets_of(trace, kind), len(published)) == pytest.approx(published, abs=0.07)


@given(st.lists(st.lists(st.integers(0, 6), max_size=3, unique=True), max_size=40), st.integers(1, 7))
def test_a_cache_loads_what_it_does_not_hold(sets: list[list[int]], places: int) -> None:
    held: list[int] = []
    loads = 0
    for rank in (rank for used in sets for rank in used):
        loads += rank not in held
        held = [rank, *(other for other in held if other != rank)][:places]
    assert lru_loads([tuple(used) for used in sets], places)[-1] == pytest.approx(loads / max(1, len(sets)))


ARGUMENTS = TraceArguments(
    "B", rate=3, seconds=30, bursts=(Burst(10, 5, 8),), random_bursts=RandomBursts(4, 2, 10), seed=5
)


def test_the_same_arguments_give_the_same_bytes() -> None:
    assert draw_trace(ARGUMENTS, PROMPTS).digest == DIGEST


@pytest.mark.parametrize("change", [{"seed": 6}, {"rate": 3.5}, {"service": "A"}, {"steps": 4}, {"lora_scale": 1.0}])
def test_other_arguments_give_others(change: dict[str, object]) -> None:
    assert draw_trace(TraceArguments(**{**vars(ARGUMENTS), **change}), PROMPTS).digest != DIGEST


def test_arrivals_leave_adapters_as_they_are() -> None:
    calm = draw_trace(TraceArguments("B", rate=3, seconds=30, seed=5), PROMPTS).requests
    for one, other in zip(calm, draw_trace(ARGUMENTS, PROMPTS).requests, strict=False):
        assert (one.controlnets, one.loras, one.prompt) == (other.controlnets, other.loras, other.prompt)


def test_arrivals_are_poisson() -> None:
    gaps = np.diff(draw_arrivals(50, 400, (), np.random.default_rng(1)))
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.02)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.02


@given(
    st.floats(0.1, 20),
    st.floats(1, 50),
    st.lists(st.builds(Burst, st.floats(0, 60), st.floats(0.1, 30), st.floats(0, 10)), max_size=4),
    st.integers(0, 2**32),
)
def test_arrivals_rise_and_lie_in_the_trace(rate: float, seconds: float, bursts: list[Burst], seed: int) -> None:
    times = draw_arrivals(rate, seconds, bursts, np.random.default_rng(seed))
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times <= seconds)).all()


def test_bursts_multiply_the_rate_where_they_are() -> None:
    bursts = (Burst(100, 50, 8), Burst(120, 10, 2), Burst(180, 100, 0))
    times = draw_arrivals(20, 200, bursts, np.random.default_rng(2))
    counts = np.histogram(times, (0, 100, 150, 180, 200))[0]
    assert counts[:3] == pytest.approx([2000, 8000, 600], rel=0.12)
    assert counts[3] == 0


def test_random_bursts_begin_calm_and_have_their_means() -> None:
    bursts = draw_bursts(100_000, 8, 5, 20, np.random.default_rng(3))
    assert np.mean([burst.seconds for burst in bursts]) == pytest.approx(5, rel=0.05)
    calm = [later.at - earlier.at - earlier.seconds for earlier, later in pairwise(bursts)]
    assert np.mean(calm) == pytest.approx(20, rel=0.05)
    assert bursts[0].at > 0
    assert {burst.factor for burst in bursts} == {8}


requests = st.builds(
    TracedRequest,
    at=st.just(0.0),
    prompt=st.text(),
    seed=st.integers(0, 2**62),
    steps=st.none() | st.integers(1, 200),
    controlnets=st.lists(st.integers(0, 93), max_size=3).map(tuple),
    loras=st.lists(st.builds(TracedLora, rank=st.integers(0, 7462), scale=st.floats(-2, 2)), max_size=2).map(tuple),
)


@given(st.lists(requests, max_size=5), st.lists(st.floats(0, 100), min_size=5, max_size=5))
def test_a_file_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, drawn_requests: list[TracedRequest], gaps: list[float]
) -> None:
    timed = [
        request.model_copy(update={"at": at}) for request, at in zip(drawn_requests, accumulate(gaps), strict=False)
    ]
    trace, file = Trace({"rate": 1.5}, tuple(timed)), tmp_path_factory.getbasetemp() / "trace.jsonl"
    trace.write(file)
    assert read_trace(file) == trace
    assert read_trace(file).digest == trace.digest


HEADER = '{"format": "swiftdiffusion trace", "version": 1}\n'
FIRST = '{"at": 1, "prompt": "a cat", "seed": 1}\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"line 1: Invalid JSON"),
        ('{"format": "swiftdiffusion trace", "version": 2}', r"line 1: version: Input should be 1"),
        (HEADER + '{"at": -1, "prompt": "a cat", "seed": 1}', r"line 2: at: "),
        (HEADER + FIRST + '{"at": 2, "prompt": "a cat"}', r"line 3: seed: Field required"),
        (HEADER + FIRST + '{"at": 2, "prompt": "a cat", "seed": 1, "sampler": "x"}', r"line 3: sampler: Extra inputs"),
        (HEADER + FIRST + '{"at": 0.5, "prompt": "a cat", "seed": 1}', r"line 3: at is 0.5; wanted: at least 1,"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "trace.jsonl").write_text(text)
    with pytest.raises(TraceError, match=told):
        read_trace(tmp_path / "trace.jsonl")


@given(st.binary(max_size=60))
def test_no_bytes_end_in_another_error(tmp_path_factory: pytest.TempPathFactory, contents: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    file.write_bytes(contents)
    with pytest.raises(TraceError):
        read_trace(file)


def test_command_writes_a_trace_and_shows_it_beside_what_is_published(tmp_path: Path) -> None:
    out, prompts = tmp_path / "new" / "trace.jsonl", tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\na dog\n")
    options = ["--service", "B", "--rate", "20", "--seconds", "9", "--burst", "2:3:4", "--prompts", str(prompts)]
    result = CliRunner().invoke(app, ["trace", str(out), *options, "--bursty", "3:1:4", "--steps", "7"])
    assert result.exit_code == 0, result.output
    assert "loads, cache of 10 │     0.010" in result.output
    trace = read_trace(out)
    assert trace.arguments["bursts"] == [{"at": 2, "seconds": 3, "factor": 4}]
    assert {request.prompt for request in trace.requests} == {"a cat", "a dog"}
    assert {request.steps for request in trace.requests} == {7}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--service", "C"], "--service is 'C'; wanted: A or B"),
        (["--burst", "1:2"], "--burst is '1:2'; wanted: AT:SECONDS:FACTOR"),
        (["--burst", "1:0:2"], "--burst is '1:0:2'"),
        (["--bursty", "8:nan:2"], "--bursty is '8:nan:2'"),
    ],
)
def test_bad_options_are_explained(tmp_path: Path, options: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["trace", str(tmp_path / "x"), *options], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert told in result.output
