"""What a server tells of its requests: each counted once, whoever ends it, and a line in the log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from controls import Use, request
from file_server import wait_for
from shard_roles import roles, shards_of
from wire import METRICS_WITHIN_S, Stream, cancel, generate, in_line, latest_metrics, metrics, stub_of

if TYPE_CHECKING:
    from conftest import TinyServer

ROOT = Path(__file__).resolve().parents[2]
three_shards = pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
one_shard = pytest.mark.parametrize("tiny", ["other"], indirect=True)
FIELDS: dict[str, Any] = {"PROMPT": "a secret cat", "SEED": 2, "STEPS": 4, "GUIDANCE_SCALE": 5.0}
LONG: dict[str, Any] = {"STEPS": 200, "HEIGHT": 128, "WIDTH": 128}
OUTCOME = re.compile(r'id=(?:null|"(?:[^"\\]|\\.)*") outcome=(\w+) ')
DROPPED = " outcome=cancelled error=lost "


def outcomes(tiny: TinyServer) -> dict[str, float]:
    """Requests of the pipeline that have ended, by outcome, but for those that were dropped."""
    pattern = re.compile(rf'swiftdiffusion_requests_finished_total{{outcome="(\w+)",pipeline="{tiny.model}"}}')
    ended = {found[1]: value for name, value in latest_metrics(tiny).items() if (found := pattern.fullmatch(name))}
    return ended | {"cancelled": ended["cancelled"] - len(log_lines(tiny, dropped=True))}


@contextmanager
def ending(tiny: TinyServer, **expected: int) -> Iterator[None]:
    """What ends within is counted so, and nothing else is, in the metrics and in the log."""
    time.sleep(METRICS_WITHIN_S)
    before, lines = outcomes(tiny), log_lines(tiny)
    yield

    def grown() -> dict[str, float]:
        return {name: value - before[name] for name, value in outcomes(tiny).items() if value != before[name]}

    deadline = time.monotonic() + 10
    while grown() != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(METRICS_WITHIN_S)
    assert grown() == expected
    found = OUTCOME.findall("\n".join(log_lines(tiny)[len(lines) :]))
    assert {outcome: found.count(outcome) for outcome in found} == expected
    wait_for(lambda: in_line(tiny) == (0, 0))  # what a dead denoiser has begun leaves its shard, too


def log_lines(tiny: TinyServer, dropped: bool = False) -> list[str]:
    """Of the pipeline's requests; those that Triton dropped, perhaps other tests', are known ten minutes later."""
    text = tiny.running.log_path.read_text(errors="replace")
    lines = [line for line in text.splitlines() if line.startswith("request ") and f"pipeline={tiny.model} " in line]
    return [line for line in lines if (DROPPED in line) == dropped]


@three_shards
def test_a_request_with_a_picture_is_in_time_and_told_by_stage(tiny: TinyServer) -> None:
    before = metrics(tiny)
    with ending(tiny, in_time=2):
        pictures = [
            generate(tiny, tiny.model, **FIELDS),
            generate(tiny, tiny.model, **FIELDS, TIMEOUT_MS=60000, REQUEST_ID='x" outcome=failed'),
        ]
    own = f'{{pipeline="{tiny.model}"}}'
    told = metrics(tiny)
    grown = {name: value - before.get(name, 0.0) for name, value in told.items()}
    assert grown[f"swiftdiffusion_request_seconds_count{own}"] == 2
    assert 0 < grown[f"swiftdiffusion_offered_seconds_total{own}"] < 10
    steps = {name: value for name, value in grown.items() if name.startswith("swiftdiffusion_step_seconds_count")}
    assert sum(value for name, value in steps.items() if f'pipeline="{tiny.model}"' in name) == 8
    assert sum(value for name, value in steps.items() if 'rows="2"' in name) == 8
    others = {tiny.inner("vae_decoder"), tiny.inner("text_encoder")}
    shards = {shard for picture in pictures for shard in picture.info["shards"]}

    def busy(model: str) -> float:
        return grown[f'swiftdiffusion_busy_seconds_total{{model="{model}",model_instance="{model}_0_0-0"}}']

    assert {model for model in {*others, *shards_of(tiny)} if busy(model) > 0} == others | shards
    line = log_lines(tiny)[-1]
    assert "secret" not in line
    assert ' id="x\\" outcome=failed" outcome=in_time ' in line
    values = re.findall(r"(\w+)_s=([\d.]+)", line)
    assert [name for name, _ in values] == ["preprocess", "encoding", "waiting", "denoising", "vae", "total"]
    *stages, total = (float(value) for _, value in values)
    assert 0.5 * total < sum(stages) <= total + 0.01


@three_shards
@pytest.mark.parametrize(
    ("fields", "outcome", "reason"),
    [
        ({"STEPS": 200, "TIMEOUT_MS": 20}, "shed", "late"),
        ({"STEPS": -1}, "invalid", "invalid"),
        ({"LORAS": '[{"name": "nobody"}]'}, "invalid", "lora"),
    ],
)
def test_who_is_refused_is_counted_with_the_reason(
    tiny: TinyServer, fields: dict[str, Any], outcome: str, reason: str
) -> None:
    generate(tiny, tiny.model, **FIELDS)
    name = f'swiftdiffusion_requests_refused_total{{pipeline="{tiny.model}",reason="{reason}"}}'
    offered = f'swiftdiffusion_offered_seconds_total{{pipeline="{tiny.model}"}}'
    before = metrics(tiny)
    with ending(tiny, **{outcome: 1}), pytest.raises(InferenceServerException):
        generate(tiny, tiny.model, **FIELDS | fields)
    after = metrics(tiny)
    assert after[name] == before.get(name, 0.0) + 1
    assert (after[offered] > before[offered]) == (outcome == "shed")


@three_shards
def test_who_is_cancelled_is_counted_so(tiny: TinyServer) -> None:
    fields = FIELDS | LONG
    with ending(tiny, cancelled=2), ThreadPoolExecutor(1) as threads:
        alone = threads.submit(generate, tiny, tiny.model, **fields, REQUEST_ID="alone")
        stream = Stream(tiny, **fields, REQUEST_ID="a stream")
        stream.next()
        for request_id in ("alone", "a stream"):
            wait_for(lambda: cancel(tiny, request_id))  # noqa: B023
        for end in (alone.result, lambda: list(stream)):
            with pytest.raises(InferenceServerException, match="was cancelled"):
                end()
        stream.close()


@three_shards
def test_what_the_dashboard_asks_for_is_told(tiny: TinyServer) -> None:
    """After a request with a LoRA and a ControlNet; but what the rules record."""
    request(tiny, Use("edges"), LORAS='[{"name": "attention"}]')
    text = (ROOT / "deploy/monitoring/grafana.json").read_text("utf-8")
    asked = set(re.findall(r"(?<![:\w])swiftdiffusion_\w+(?![\w:])", text))
    told = {name.partition("{")[0] for name in metrics(tiny)}
    assert asked - told == set()


@three_shards
def test_top_shows_what_runs(tiny: TinyServer) -> None:
    command, seen = [Path(sys.executable).with_name("swiftdiffusion"), "top", "--url"], threading.Event()

    def draw() -> None:
        while not seen.is_set():
            generate(tiny, tiny.model, **FIELDS)

    with ThreadPoolExecutor(1) as threads:
        drawing = threads.submit(draw)
        shown = subprocess.run(
            [*command, tiny.metrics_url, "--once"],
            env={**os.environ, "COLUMNS": "160"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        seen.set()
        drawing.result()
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in shown.splitlines()]
    by_name = {row[0]: row[1:] for row in rows if row}
    waiting, running, requests, refused, _, in_time, *_, steps = by_name["sdxl"]
    assert (refused, in_time) == ("0.00", "100.0%")
    assert int(waiting) + int(running) <= 2 and float(requests) > 0  # told one after the other
    assert steps.startswith("≤2: ")
    assert by_name["other"][2] == "0.00"
    assert by_name[tiny.inner("vae_decoder")][-1] == "up"
    assert any(row[0] != "0%" for name, row in by_name.items() if name.startswith(tiny.inner("unet_shard")))
    gone = subprocess.run([*command, "http://127.0.0.1:9/metrics"], capture_output=True, text=True)
    assert gone.returncode == 1 and "error: http://127.0.0.1:9/metrics" in gone.stderr


@one_shard
def test_who_waits_and_who_denoises_is_seen(tiny: TinyServer) -> None:
    with ending(tiny, in_time=12), ThreadPoolExecutor(12) as threads:
        running = [
            threads.submit(generate, tiny, tiny.model, **FIELDS | {"STEPS": 100, "HEIGHT": 128, "WIDTH": 128})
            for _ in range(12)
        ]
        wait_for(lambda: in_line(tiny) == (4, 8))
        for one in running:
            one.result()


@three_shards
@pytest.mark.kills
def test_a_request_that_dies_with_its_process_has_failed(tiny: TinyServer) -> None:
    denoiser = tiny.inner("denoiser")
    with ending(tiny, failed=1, in_time=1), ThreadPoolExecutor(1) as threads:
        victim = threads.submit(generate, tiny, tiny.model, **FIELDS | LONG)
        wait_for(lambda: in_line(tiny)[1] == 1)
        os.kill(stub_of(tiny.running, denoiser), signal.SIGKILL)
        with pytest.raises(InferenceServerException):
            victim.result()
        with grpc.InferenceServerClient(tiny.grpc_url.split("://")[-1]) as server:
            server.unload_model(denoiser)
            server.load_model(denoiser)
        generate(tiny, tiny.model, **FIELDS)


@three_shards
@pytest.mark.kills
def test_a_shard_that_dies_leaves_nobody_in_its_line(tiny: TinyServer) -> None:
    with ending(tiny, in_time=1), ThreadPoolExecutor(1) as threads:
        victim = threads.submit(generate, tiny, tiny.model, **FIELDS | LONG)
        home, _ = roles(tiny)
        wait_for(lambda: in_line(tiny)[1] == 1)
        os.kill(stub_of(tiny.running, home), signal.SIGKILL)
        assert victim.result().info["shards"]


def test_what_is_known_of_pictures_is_counted_from_zero_on(tiny: TinyServer) -> None:
    told = latest_metrics(tiny)
    for what in ("written", "dropped", "hit", "miss"):
        assert told[f'swiftdiffusion_template_entries_total{{outcome="{what}",pipeline="{tiny.model}"}}'] >= 0
    for what in ("bytes", "wait_seconds"):
        assert told[f'swiftdiffusion_template_{what}_total{{pipeline="{tiny.model}"}}'] >= 0
