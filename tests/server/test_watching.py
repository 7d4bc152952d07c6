"""Models whose processes die or hang are loaded again from outside, on throwaway repositories."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from file_server import wait_for
from serve_process import COMMAND, Serving, serving
from swiftdiffusion.clients.cli import app
from swiftdiffusion.python_backends.launcher import ServerOptions, TritonServer
from swiftdiffusion.python_backends.launcher.model_processes import model_processes
from swiftdiffusion.python_backends.launcher.running import ServerNotFoundError, find_server
from throwaway import add_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HANGING = """\
from swiftdiffusion.python_backends.common.pulse import Pulse


class TritonPythonModel:
    def initialize(self, args):
        self.pulse = Pulse(args["model_name"], args["model_instance_name"])
        self.pulse.ready()

    def execute(self, requests):
        import time
        with self.pulse.within(0.1):
            time.sleep(3600)
"""
SURELY_S = 30.0


class Watched:
    """A server that is watched.

    Attributes:
        url: Of its HTTP API.
        client: Over gRPC.
        directory: Where its model `weights` finds a file.
    """

    def __init__(self, server: Serving | TritonServer, directory: Path) -> None:
        self.url, self.directory = server.http_url, directory
        self.client = grpc.InferenceServerClient(server.grpc_url.split("://")[-1])

    def process(self, model: str) -> int | None:
        """Of a model, if it has one."""
        try:
            server = find_server(self.url).pid
        except ServerNotFoundError:
            return None
        return next((process.pid for process in model_processes(server) if process.model == model), None)

    def kill(self, model: str, how: signal.Signals = signal.SIGKILL) -> int:
        """The process that it was."""
        process = self.process(model)
        assert process is not None
        os.kill(process, how)
        return process

    def wait_process(self, model: str, before: int) -> None:
        """Until a model has another process than before."""
        wait_for(lambda: self.process(model) not in (None, before), SURELY_S)

    def answers(self, model: str) -> bool:
        """Whether a model does what it is asked."""
        tensor = grpc.InferInput("IN", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
        try:
            return bool(self.client.infer(model, [tensor], client_timeout=10).as_numpy("OUT").all())
        except InferenceServerException:
            return False

    def wait_healed(self, model: str, before: int) -> None:
        """Until a model has another process than before, which answers."""
        self.wait_process(model, before)
        wait_for(lambda: self.answers(model), SURELY_S)


def make_repository(directory: Path) -> Path:
    repository = directory / "repository"
    for name in ("calm", "other"):
        add_model(repository, name)
    begun = directory / "begun"
    add_model(repository, "slow", f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(2)")
    add_model(repository, "weights", f"open({str(directory / 'weights.bin')!r}).close()")
    add_model(repository, "hangs")
    (repository / "hangs/1/model.py").write_text(HANGING)
    (directory / "weights.bin").touch()
    return repository


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """By `swiftdiffusion serve`."""
    directory = tmp_path_factory.mktemp("watched")
    with serving(make_repository(directory), "--log-file", str(directory / "log"), "--stop-timeout", "1") as served:
        served.ready_pid()
        yield Watched(served, directory)


def probe(url: str, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["probe", "--url", url, *options])
    return result.exit_code, result.output


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_models_that_die_or_stop_are_loaded_again_and_no_others(watched: Watched, how: signal.Signals) -> None:
    other, before = watched.process("other"), {model: watched.kill(model, how) for model in ("calm", "slow")}
    for model, process in before.items():
        watched.wait_healed(model, process)
    assert watched.process("other") == other


def test_one_that_is_stopped_while_it_loads_again_is_loaded_once_more(watched: Watched) -> None:
    begun = watched.directory / "begun"
    begun.unlink()
    watched.kill("slow")
    wait_for(begun.exists, SURELY_S)
    watched.wait_healed("slow", watched.kill("slow", signal.SIGSTOP))


def test_one_that_takes_too_long_hangs(watched: Watched) -> None:
    before = watched.process("hangs")
    assert before is not None
    threading.Thread(target=watched.answers, args=("hangs",), daemon=True).start()
    watched.wait_process("hangs", before)


def test_one_that_does_not_load_is_tried_again_and_its_reason_told(watched: Watched) -> None:
    wait_for(lambda: probe(watched.url, "--ready") == (0, "ready\n"), SURELY_S)
    weights = watched.directory / "weights.bin"
    weights.rename(weights.with_name("elsewhere"))
    before = watched.kill("weights")
    wait_for(lambda: "No such file" in probe(watched.url, "--ready")[1], SURELY_S)
    assert watched.answers("calm")
    status, said = probe(watched.url)
    assert status == 0
    assert said.startswith("alive\nweights is down: FileNotFoundError: [Errno 2] No such file")
    diagnosis = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "240"}).output
    assert "weights is down: FileNotFoundError" in diagnosis, diagnosis
    weights.with_name("elsewhere").rename(weights)
    watched.wait_healed("weights", before)
    wait_for(lambda: probe(watched.url, "--ready") == (0, "ready\n"), SURELY_S)


def test_one_that_was_unloaded_on_purpose_stays_so(watched: Watched) -> None:
    watched.client.unload_model("calm")
    time.sleep(2)
    assert watched.process("calm") is None
    watched.client.load_model("calm")
    assert watched.answers("calm")


def test_one_that_is_killed_before_its_first_message_is_there_again_too(watched: Watched) -> None:
    """Triton waits for it without end; then `serve` starts the server again."""
    first = watched.kill("slow")
    wait_for(lambda: watched.process("slow") not in (None, first), SURELY_S)
    watched.wait_healed("slow", watched.kill("slow"))
    wait_for(lambda: watched.answers("calm"), SURELY_S)


def test_one_that_is_killed_when_it_loads_for_the_first_time_is_loaded_again(tmp_path: Path) -> None:
    add_model(tmp_path / "slow", "slow", "import time; time.sleep(2)")
    with serving(tmp_path / "slow", "--log-file", str(tmp_path / "log"), "--stop-timeout", "1") as served:
        os.kill(served.first_process("slow"), signal.SIGKILL)
        served.ready_pid()


def test_beside_a_server_that_was_started_otherwise(tmp_path: Path) -> None:
    repository = make_repository(tmp_path)
    with TritonServer(repository, options=ServerOptions(stop_timeout_seconds=1.0)) as server:
        url = server.http_url
        assert probe(url) == (1, "nobody watches: `swiftdiffusion serve`, or `watch`, has ended or hangs\n")
        watch = subprocess.Popen([COMMAND, "watch", "--url", url], stderr=subprocess.PIPE, text=True)
        try:
            assert watch.stderr is not None
            assert watch.stderr.readline().startswith(f"watching tritonserver, pid {server.pid}")
            watched = Watched(server, tmp_path)
            watched.wait_healed("calm", watched.kill("calm"))
            again = subprocess.run([COMMAND, "watch", "--url", url], capture_output=True, text=True, check=False)
            assert f"is watched already, by process {watch.pid}" in again.stderr
            assert CliRunner().invoke(app, ["drain", "--url", url]).exit_code == 0
            assert server.returncode is not None
            assert watch.stderr.readline().startswith("calm is down and is loaded again: its process died")
        finally:
            watch.terminate()
            watch.communicate(timeout=30)
        assert watch.returncode == 0
