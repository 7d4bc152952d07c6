"""perf_analyzer's inputs and reports, and Triton's counters."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from swiftdiffusion.clients.cli import app
from swiftdiffusion.clients.perf.command import PLAIN_REQUESTS
from swiftdiffusion.clients.perf.load import Load, input_data, load_arguments, measure, parse_report, read_requests
from swiftdiffusion.clients.perf.statistics import parse_statistics
from swiftdiffusion.clients.perf.tool import PerfAnalyzer, PerfAnalyzerError, find_perf_analyzer

REPORT = """\
Concurrency,Inferences/Second,Client Send,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,Avg latency
4,13.27,14,3,303000,332000,341000,367000,287000
"""


def test_committed_requests_vary_in_all_but_the_steps() -> None:
    requests = read_requests(PLAIN_REQUESTS, {"STEPS": None})
    assert len({request["PROMPT"][0] for request in requests}) == len(requests) >= 8
    assert len({request["SEED"][0] for request in requests}) == len(requests)
    assert len({request["STEPS"][0] for request in requests}) == 1


def test_overrides_replace_inputs() -> None:
    assert {request["STEPS"][0] for request in read_requests(PLAIN_REQUESTS, {"STEPS": 3})} == {3}


def test_report_in_pictures_per_second_and_milliseconds(tmp_path: Path) -> None:
    (tmp_path / "report.csv").write_text(REPORT)
    latency = parse_report(tmp_path / "report.csv")
    assert (latency.throughput, latency.mean_ms) == (13.27, 287.0)
    assert latency.percentiles_ms == {"p50": 303.0, "p90": 332.0, "p95": 341.0, "p99": 367.0}


def test_sequence_ids_are_taken_back_over_grpc() -> None:
    load = Load("grpc://127.0.0.1:1", "sdxl", read_requests(PLAIN_REQUESTS, {"STEPS": 2}))
    arguments = " ".join(load_arguments(load, 4))
    assert "-m sdxl --async --concurrency-range=4:4 -i grpc -u 127.0.0.1:1" in arguments
    assert "--request-parameter sequence_id:0:int" in arguments
    assert input_data(load)["data"][0]["STEPS"] == [2]


def test_http_goes_to_the_generate_endpoint() -> None:
    load = Load("http://127.0.0.1:1", "sdxl", read_requests(PLAIN_REQUESTS, {"STEPS": 2}))
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


def test_bad_concurrency_is_explained() -> None:
    result = CliRunner().invoke(app, ["perf", "--concurrency", "1,many"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "1,2,4,8" in result.output
