"""One measurement: perf_analyzer at one concurrency, its report as numbers."""

import csv
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from ..client.access import GRPC_ADMIN_HEADER, admin_headers
from .tool import PerfAnalyzer, PerfAnalyzerError

Requests: TypeAlias = tuple[Mapping[str, Any], ...]
"""Entries of perf_analyzer's `data`: values by input."""

INPUTS = {name: Path(__file__).with_name(f"{name}.json") for name in ("plain", "loras")}
"""Input data that comes along: requests without LoRAs, and with those of the demo family."""

_PERCENTILES = ("p50", "p90", "p95", "p99")


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        url: `grpc://HOST:PORT` or `http://HOST:PORT`.
        model: the entry model.
        requests: perf_analyzer's input data, sent round robin.
        requests_per_window: at least so many in each of the three windows of a measurement.
        admin_key: of a restricted server, which tells its statistics to nobody else.
    """

    url: str
    model: str
    requests: Requests
    requests_per_window: int = 10
    admin_key: str | None = field(default=None, repr=False)

    @property
    def api(self) -> str:
        """Which of the server's APIs is used."""
        return "gRPC infer" if self.url.startswith("grpc") else "HTTP generate"


@dataclass(frozen=True)
class Latency:
    """Throughput in pictures per second, latencies in milliseconds."""

    throughput: float
    mean_ms: float
    percentiles_ms: Mapping[str, float]


def read_requests(file: Path, overrides: Mapping[str, Any]) -> Requests:
    """Requests of a perf_analyzer input file, with some inputs replaced.

    Args:
        file: `{"data": [{"PROMPT": [...], "SEED": [...], ...}, ...]}`.
        overrides: values by input; None leaves what the file says.
    """
    values = {name: [value] for name, value in overrides.items() if value is not None}
    return tuple({**entry, **values} for entry in json.loads(file.read_text(encoding="utf-8"))["data"])


def measure(tool: PerfAnalyzer, load: Load, concurrency: int, directory: Path) -> Latency:
    """Runs perf_analyzer at one concurrency.

    Args:
        tool: which perf_analyzer.
        load: what to send.
        concurrency: requests in flight.
        directory: for its files.

    Raises:
        PerfAnalyzerError: it failed; the message is its own.
    """
    data, report = directory / "input.json", directory / f"concurrency-{concurrency}.csv"
    data.write_text(json.dumps(input_data(load)))
    command = [
        str(tool.path),
        *load_arguments(load, concurrency),
        *("--measurement-mode=count_windows", f"--measurement-request-count={load.requests_per_window}"),
        *("--stability-percentage=999", "--max-trials=3"),  # three windows, all of them counted
        *("--input-data", str(data), "-f", str(report), "--verbose-csv"),
    ]
    answer = subprocess.run(command, env=tool.environment(), capture_output=True, text=True, check=False)
    if answer.returncode != 0 or not report.exists():
        said = (answer.stdout + answer.stderr).strip().splitlines()
        raise PerfAnalyzerError("perf_analyzer failed: " + "\n".join(line for line in said[-6:] if line.strip()))
    return parse_report(report)


def parse_report(report: Path) -> Latency:
    """Throughput and latencies from perf_analyzer's CSV (`--verbose-csv`) of one concurrency."""
    with report.open(newline="") as file:
        row = next(csv.DictReader(file))
    percentiles = {name: float(row[f"{name} latency"]) / 1000 for name in _PERCENTILES}
    return Latency(float(row["Inferences/Second"]), float(row["Avg latency"]) / 1000, percentiles)


def load_arguments(load: Load, concurrency: int) -> list[str]:
    """perf_analyzer's arguments for where and how to send.

    perf_analyzer takes a model with a sequence batcher in it for one that needs sequences, and a sequence that starts
    and ends in one request never returns from an iterative model. Over gRPC a parameter can take the sequence id back
    to 0, which is none; over HTTP it has no such option, so there it posts to the generate endpoint.
    """
    address = urlsplit(load.url)
    common = ["-m", load.model, "--async", f"--concurrency-range={concurrency}:{concurrency}"]
    if address.scheme == "grpc":
        headers = admin_headers(GRPC_ADMIN_HEADER, load.admin_key) or {}
        common += [part for name, value in headers.items() for part in ("-H", f"{name}:{value}")]
        return [*common, "-i", "grpc", "-u", address.netloc, "--request-parameter", "sequence_id:0:int"]
    endpoint = f"v2/models/{load.model}/generate"
    return [*common, "--service-kind=openai", "--endpoint", endpoint, "-u", f"{address.scheme}://{address.netloc}"]


def input_data(load: Load) -> Mapping[str, Any]:
    """The requests in the form that perf_analyzer wants for the API that is used."""
    if load.url.startswith("grpc"):
        return {"data": load.requests}
    payloads = [{name: value[0] for name, value in request.items()} for request in load.requests]
    return {"data": [{"payload": [payload]} for payload in payloads]}
