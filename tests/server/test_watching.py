"""Models whose processes die or hang are loaded again from outside, on throwaway repositories."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from file_server import wait_for
from serve_process import COMMAND, Serving, serving
from swiftdiffusion.clients.cli import app
from swiftdiffusion.python_backends.launcher import ServerOptions, TritonServer
from swiftdiffusion.python_backends.launcher.model_processes import model_processes
from throwaway import add_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HANGING = """\
from swiftdiffusion.python_backends.common.pulse import Pulse


class TritonPythonModel:
    def initialize(self, args):
        self.pulse = Pulse(args["model_name"], args["model_instance_name"])

    def execute(self, requests):
        import time
        with self.pulse.within(0.1):
            time.sleep(3600)
"""
SURELY_S = 15.0


class Watched:
    """A server that is watched.

    Attributes:
        pid: Of tritonserver.
        url: Of its HTTP API.
        client: Over gRPC.
        directory: Where its model `weights` finds a file.
    """

    def __init__(self, server: Serving | TritonServer, pid: int, directory: Path) -> None:
        self.pid, self.url, self.directory = pid, server.http_url, directory
        self.client = grpc.InferenceServerClient(server.grpc_url.split("://")[-1])

    def processes(self, *models: str) -> list[int]:
        """Of models that have one."""
        found = {process.model: process.pid for process in model_processes(self.pid)}
        return [found.get(model, 0) for model in models]

    def answers(self, model: str) -> bool:
        """Whether a model does what it is asked."""
        tensor = grpc.InferInput("IN", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
        try:
            return bool(self.client.infer(model, [tensor], client_timeout=10).as_numpy("OUT").all())
        except InferenceServerException:
            return False

    def wait_healed(self, model: str, before: int) -> None:
        """Until a model has another process than before."""
        wait_for(lambda: self.processes(model)[0] not in (0, before) and self.answers(model), SURELY_S)


def make_repository(directory: Path) -> Path:
    repository = directory / "repository"
    for name in ("calm", "other"):
        add_model(repository, name)
    add_model(repository, "slow", "import time; time.sleep(2)")
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
        yield Watched(served, served.ready_pid(), directory)


def probe(url: str, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["probe", "--url", url, *options])
    return result.exit_code, result.output


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_models_that_die_or_stop_are_loaded_again_and_no_others(watched: Watched, how: signal.Signals) -> None:
    victims, (other,) = watched.processes("calm", "slow"), watched.processes("other")
    for pid in victims:
        os.kill(pid, how)
    for model, pid in zip(("calm", "slow"), victims, strict=True):
        watched.wait_healed(model, pid)
    assert watched.processes("other") == [other]


def test_one_that_is_killed_while_it_loads_again_is_loaded_once_more(watched: Watched) -> None:
    (first,) = watched.processes("slow")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: watched.processes("slow")[0] not in (0, first), SURELY_S)
    (second,) = watched.processes("slow")
    os.kill(second, signal.SIGSTOP)
    wait_for(lambda: watched.processes("slow")[0] not in (0, second), SURELY_S)
    watched.wait_healed("slow", second)


def test_one_that_takes_too_long_hangs(watched: Watched) -> None:
    (before,) = watched.processes("hangs")
    threading.Thread(target=watched.answers, args=("hangs",), daemon=True).start()
    wait_for(lambda: watched.processes("hangs")[0] not in (0, before), SURELY_S)


def test_one_that_does_not_load_is_tried_again_and_its_reason_told(watched: Watched) -> None:
    assert probe(watched.url, "--ready") == (0, "ready\n")
    weights = watched.directory / "weights.bin"
    weights.rename(weights.with_name("elsewhere"))
    (before,) = watched.processes("weights")
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: "No such file" in probe(watched.url, "--ready")[1], SURELY_S)
    assert watched.answers("calm")
    status, said = probe(watched.url)
    assert status == 0
    assert said.startswith("alive\nweights is down: FileNotFoundError: [Errno 2] No such file")
    weights.with_name("elsewhere").rename(weights)
    watched.wait_healed("weights", before)
    wait_for(lambda: probe(watched.url, "--ready") == (0, "ready\n"), SURELY_S)


def test_one_that_was_unloaded_on_purpose_stays_so(watched: Watched) -> None:
    watched.client.unload_model("calm")
    time.sleep(2)
    assert watched.processes("calm") == [0]
    watched.client.load_model("calm")
    assert watched.answers("calm")


def test_one_that_is_killed_when_it_loads_for_the_first_time_is_loaded_again(tmp_path: Path) -> None:
    add_model(tmp_path / "slow", "slow", "import time; time.sleep(2)")
    with serving(tmp_path / "slow", "--log-file", str(tmp_path / "log")) as served:
        server = psutil.Process(served.process.pid)
        wait_for(lambda: any(model_processes(child.pid) for child in server.children()), 30)
        (tritonserver,) = [child for child in server.children() if child.name() == "tritonserver"]
        os.kill(model_processes(tritonserver.pid)[0].pid, signal.SIGKILL)
        assert served.ready_pid() == tritonserver.pid


def test_beside_a_server_that_was_started_otherwise(tmp_path: Path) -> None:
    repository = make_repository(tmp_path)
    with TritonServer(repository, options=ServerOptions(stop_timeout_seconds=1.0)) as server:
        url = server.http_url
        assert probe(url) == (1, "nobody watches: `swiftdiffusion serve`, or `watch`, has ended or hangs\n")
        watch = subprocess.Popen([COMMAND, "watch", "--url", url], stderr=subprocess.PIPE, text=True)
        try:
            assert watch.stderr is not None
            assert watch.stderr.readline().startswith(f"watching tritonserver, pid {server.pid}")
            watched = Watched(server, server.pid, tmp_path)
            (before,) = watched.processes("calm")
            os.kill(before, signal.SIGKILL)
            watched.wait_healed("calm", before)
            again = subprocess.run([COMMAND, "watch", "--url", url], capture_output=True, text=True, check=False)
            assert f"is watched already, by process {watch.pid}" in again.stderr
            assert CliRunner().invoke(app, ["drain", "--url", url]).exit_code == 0
            assert server.returncode == 0
            assert watch.stderr.readline().startswith("calm is down and is loaded again: its process died")
        finally:
            watch.terminate()
            watch.communicate(timeout=30)
        assert watch.returncode == 0


def test_who_cannot_heal_says_so(tmp_path: Path) -> None:
    options = ServerOptions(extra_arguments=("--model-control-mode=none",), stop_timeout_seconds=1.0)
    add_model(tmp_path / "repository", "calm")
    with TritonServer(tmp_path / "repository", options=options) as server:
        result = CliRunner().invoke(app, ["watch", "--url", server.http_url])
        assert result.exit_code == 1
        assert "was started without --model-control-mode=explicit" in result.output
    assert "no tritonserver of this machine listens at" in probe(server.http_url)[1]
