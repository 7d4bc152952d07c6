"""perf_analyzer's inputs and reports, and the server's counters."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from swiftdiffusion.clients.cli import app
from swiftdiffusion.clients.perf.load import (
    INPUTS,
    Load,
    input_data,
    load_arguments,
    measure,
    parse_report,
    read_requests,
)
from swiftdiffusion.clients.perf.lora_metrics import Timed, metrics_url_of, parse_lora_metrics, read_lora_metrics
from swiftdiffusion.clients.perf.lora_mix import draw_requests
from swiftdiffusion.clients.perf.statistics import parse_statistics
from swiftdiffusion.clients.perf.tool import PerfAnalyzer, PerfAnalyzerError, find_perf_analyzer
from swiftdiffusion.export.demo.lora.recipes import RECIPES

REPORT = """\
Concurrency,Inferences/Second,Client Send,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,Avg latency
4,13.27,14,3,303000,332000,341000,367000,287000
"""


@pytest.mark.parametrize("name", INPUTS)
def test_committed_requests_vary_in_all_but_the_steps(name: str) -> None:
    requests = read_requests(INPUTS[name], {"STEPS": None})
    assert len({request["PROMPT"][0] for request in requests}) == len(requests) >= 8
    assert len({request["SEED"][0] for request in requests}) == len(requests)
    assert len({request["STEPS"][0] for request in requests}) == 1
    assert len({tuple(sorted(request)) for request in requests}) == 1  # perf_analyzer wants the same inputs in each


def loras_of(requests: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [[lora["name"] for lora in json.loads(request["LORAS"][0])] for request in requests]


def test_committed_requests_have_no_lora_one_and_two_and_hot_names() -> None:
    named = loras_of(read_requests(INPUTS["loras"], {}))
    assert {len(names) for names in named} == {0, 1, 2}
    counts = Counter(name for names in named for name in names)
    assert set(counts) == set(RECIPES)
    assert max(counts.values()) >= 4


def test_overrides_replace_inputs() -> None:
    assert {request["STEPS"][0] for request in read_requests(INPUTS["plain"], {"STEPS": 3})} == {3}


def test_report_in_pictures_per_second_and_milliseconds(tmp_path: Path) -> None:
    (tmp_path / "report.csv").write_text(REPORT)
    latency = parse_report(tmp_path / "report.csv")
    assert (latency.throughput, latency.mean_ms) == (13.27, 287.0)
    assert latency.percentiles_ms == {"p50": 303.0, "p90": 332.0, "p95": 341.0, "p99": 367.0}


def test_sequence_ids_are_taken_back_over_grpc() -> None:
    load = Load("grpc://127.0.0.1:1", "sdxl", read_requests(INPUTS["plain"], {"STEPS": 2}))
    arguments = " ".join(load_arguments(load, 4))
    assert "-m sdxl --async --concurrency-range=4:4 -i grpc -u 127.0.0.1:1" in arguments
    assert "--request-parameter sequence_id:0:int" in arguments
    assert input_data(load)["data"][0]["STEPS"] == [2]


def test_http_goes_to_the_generate_endpoint() -> None:
    load = Load("http://127.0.0.1:1", "sdxl", read_requests(INPUTS["plain"], {"STEPS": 2}))
    assert "--endpoint v2/models/sdxl/generate -u http://127.0.0.1:1" in " ".join(load_arguments(load, 1))
    assert input_data(load)["data"][0]["payload"][0]["STEPS"] == 2


def test_what_the_tool_complains_of_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(PerfAnalyzerError, match=r"invalid|unrecognized"):
        measure(PerfAnalyzer(Path("/bin/ls")), Load("grpc://x:1", "sdxl", ()), 1, tmp_path)


def test_installed_tool_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERF_ANALYZER", "/bin/ls")
    assert find_perf_analyzer(tmp_path) == PerfAnalyzer(Path("/bin/ls"))


def counters(calls: int, inferences: int, executions: int, compute_ns: int) -> dict[str, object]:
    stages = {
        "success": {"count": str(calls)},
        "queue": {},
        "compute_infer": {"count": str(calls), "ns": str(compute_ns)},
    }
    counts = {"inference_count": str(inferences), "execution_count": str(executions)}
    return {"name": "unet_shard0", "version": "1", **counts, "inference_stats": stages}


def test_work_is_the_difference_of_counters() -> None:
    idle = {"name": "cancel", "version": "1"}
    before = parse_statistics({"model_stats": [counters(2, 4, 2, 10_000_000), idle]})
    after = parse_statistics({"model_stats": [counters(6, 14, 6, 50_000_000), idle]})
    (work,) = after.work_since(before)
    assert (work.model, work.calls, work.executions) == ("unet_shard0", 4, 4)
    assert work.mean_batch == 2.5
    assert work.compute_ms == 10.0
    assert work.queue_ms == work.transfer_ms == 0.0


def test_both_apis_are_the_default() -> None:
    result = CliRunner().invoke(app, ["perf", "--help"], env={"COLUMNS": "200"})
    assert "grpc://127.0.0.1:8001 and http://127.0.0.1:8000" in result.output


@given(
    st.lists(st.from_regex("[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True), min_size=1, max_size=20, unique=True),
    st.integers(1, 40),
    st.floats(0, 1),
    st.floats(0, 3),
    st.integers(0, 2**32),
)
def test_drawn_requests_are_what_was_asked_for(
    names: list[str], count: int, share: float, exponent: float, seed: int
) -> None:
    requests = draw_requests(names, count, share, exponent, seed, 20)
    assert requests == draw_requests(names[::-1], count, share, exponent, seed, 20)
    assert len(requests) == count
    for drawn in loras_of(requests):
        assert len(drawn) <= 2 - (share == 0) * 2
        assert len(set(drawn)) == len(drawn)
        assert set(drawn) <= set(names)


def test_names_are_drawn_by_zipfs_law() -> None:
    names = [f"lora{index}" for index in range(50)]
    drawn = loras_of(draw_requests(names, 4000, 0.6, 1.1, 1, 20))
    assert sum(map(bool, drawn)) / len(drawn) == pytest.approx(0.6, abs=0.03)
    counts = [count for _, count in Counter(name for names in drawn for name in names).most_common()]
    assert counts[0] / counts[9] == pytest.approx(10**1.1, rel=0.35)
    assert len(counts) > 45


def test_lora_mix_writes_input_data_of_a_catalogue(tmp_path: Path) -> None:
    for name in ("ink", "papercut"):
        (tmp_path / f"{name}.safetensors").touch()
    out = tmp_path / "new" / "mix.json"
    arguments = ["lora-mix", str(tmp_path), "--out", str(out), "--requests", "9", "--lora-share", "1", "--steps", "3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "9 requests with 2 of 2 LoRAs" in result.output
    requests = read_requests(out, {})
    assert {request["STEPS"][0] for request in requests} == {3}
    assert set(map(len, loras_of(requests))) == {1, 2}


def test_a_mix_of_no_loras_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["lora-mix", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "there are no LoRAs" in result.output


def test_a_mix_of_a_broken_catalogue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "catalogue.json").write_text('{"loras": {"ink": {"bound": -1}}}')
    result = CliRunner().invoke(app, ["lora-mix", str(tmp_path)], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert "catalogue.json: loras.ink.bound is -1" in result.output


def metrics(loads: int, seconds: float, refusals: int, patches: int, waits: int) -> str:
    return f"""\
# HELP swiftdiffusion_lora_load_seconds Time from a request to its LoRA in the host cache
# TYPE swiftdiffusion_lora_load_seconds histogram
swiftdiffusion_lora_load_seconds_count{{source="disk"}} {loads}
swiftdiffusion_lora_load_seconds_sum{{source="disk"}} {seconds}
swiftdiffusion_lora_load_seconds_bucket{{source="disk",le="0.1"}} {loads}
swiftdiffusion_lora_load_seconds_bucket{{source="disk",le="+Inf"}} {loads}
swiftdiffusion_lora_load_seconds_count{{source="remote"}} 3
swiftdiffusion_lora_load_seconds_sum{{source="remote"}} 3.5
# TYPE swiftdiffusion_lora_refusals_total counter
swiftdiffusion_lora_refusals_total{{reason="unknown"}} {refusals}
swiftdiffusion_lora_refusals_total{{reason="file"}} 1
# TYPE swiftdiffusion_lora_patch_seconds histogram
swiftdiffusion_lora_patch_seconds_count{{shard="unet_shard0"}} {patches}
swiftdiffusion_lora_patch_seconds_sum{{shard="unet_shard0"}} {patches * 0.02}
swiftdiffusion_lora_patch_seconds_count{{shard="unet_shard1"}} {patches}
swiftdiffusion_lora_patch_seconds_sum{{shard="unet_shard1"}} {patches * 0.04}
# TYPE swiftdiffusion_lora_delay_steps histogram
swiftdiffusion_lora_delay_steps_count {loads}
swiftdiffusion_lora_delay_steps_sum {3 * loads}
# TYPE swiftdiffusion_lora_wait_seconds histogram
swiftdiffusion_lora_wait_seconds_count {waits}
swiftdiffusion_lora_wait_seconds_sum {waits * 0.25}
# TYPE nv_inference_count counter
nv_inference_count{{model="sdxl",version="1"}} 9
"""


def test_what_happened_to_loras_is_the_difference_of_metrics() -> None:
    earlier, now = parse_lora_metrics(metrics(2, 0.5, 0, 1, 0)), parse_lora_metrics(metrics(6, 1.5, 2, 3, 1))
    work = now.work_since(earlier)
    assert work is not None
    assert work.loads == {"disk": Timed(4, 250.0)}
    assert (work.refused, work.delay_steps, work.waits) == (2, 3.0, Timed(1, 250.0))
    assert (work.patches.count, work.patches.mean_ms) == (4, pytest.approx(30.0))
    assert now.work_since(now) is None
    first = now.work_since(parse_lora_metrics(""))  # families appear with their first value
    assert first is not None
    assert first.loads["remote"].count == 3


def test_metrics_are_looked_for_on_the_servers_host() -> None:
    assert metrics_url_of("grpc://gpu7:9001") == "http://gpu7:8002/metrics"
    assert metrics_url_of("http://[::1]:8000") == "http://[::1]:8002/metrics"


def test_what_are_no_metrics_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<html>nothing of use</html>")
    with pytest.raises(OSError, match="no metrics"):
        read_lora_metrics(page.as_uri())


def test_unknown_input_data_is_explained() -> None:
    result = CliRunner().invoke(app, ["perf", "--input-data", "lores"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "plain, loras or a file" in result.output


def test_bad_concurrency_is_explained() -> None:
    result = CliRunner().invoke(app, ["perf", "--concurrency", "1,many"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "1,2,4,8" in result.output
