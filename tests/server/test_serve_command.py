"""`swiftdiffusion serve` with real servers on throwaway repositories."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from file_server import wait_for
from serve_process import COMMAND, Serving, serving
from swiftdiffusion.python_backends.launcher.ports import free_ports
from swiftdiffusion.python_backends.launcher.processes import group_members
from throwaway import add_model, assert_nothing_left, regions, stub_of


@pytest.fixture
def serve() -> Iterator[Callable[..., Serving]]:
    """Starts `swiftdiffusion serve` on free ports."""
    with ExitStack() as stop:
        yield lambda *arguments: stop.enter_context(serving(*arguments))


def is_ready(url: str, model: str) -> bool:
    with urllib.request.urlopen(f"{url}/v2/models/{model}/ready") as answer:
        return answer.status == 200


def test_command_reports_a_model_that_fails(broken: Path, serve: Callable[..., Serving]) -> None:
    served = serve(broken)
    _out, messages = served.process.communicate(timeout=60)
    assert served.process.returncode == 1
    assert "model 'boom' failed to load: FileNotFoundError: no weights in /nowhere" in messages
    assert len(messages.splitlines()) < 15
    kept = re.search(r"the server's log: (.+)", messages)
    assert kept
    assert "failed to load 'boom'" in Path(kept[1]).read_text()
    Path(kept[1]).unlink()


def test_command_refuses_a_busy_port_before_it_starts(fine: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        command = [COMMAND, "serve", "-r", str(fine), "--grpc-port", str(port)]
        http, metrics = map(str, free_ports(2))
        command += ["--http-port", http, "--metrics-port", metrics]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert answer.returncode == 1
    assert f"port {port} is in use" in answer.stderr
    assert "--grpc-port" in answer.stderr
    assert "loaded" not in answer.stderr


def test_sigterm_stops_everything(fine: Path, serve: Callable[..., Serving]) -> None:
    served = serve(fine)
    pid = served.ready_pid()
    served.process.terminate()
    messages = served.rest()
    assert served.process.returncode == 0
    assert "Started HTTPService" in messages  # the log is streamed
    assert_nothing_left(pid)


SLOW = """\
import time

import triton_python_backend_utils as pb_utils
from swiftdiffusion.python_backends.backend.model import Model
from swiftdiffusion.python_backends.common.draining import is_draining
from swiftdiffusion.python_backends.common.pulse import DOOR


class TritonPythonModel(Model):
    doing = {doing}

    def load(self, args):
        pass

    def respond(self, requests):
        return [self.answer(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()) for request in requests]

    def answer(self, given):
        {answer}
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", given)])
"""
"""A model of the server's kind, for clients' requests or what was accepted of them."""


def test_sigterm_drains(tmp_path: Path, serve: Callable[..., Serving]) -> None:
    """Whatever was accepted is answered, and what comes later is refused at once."""
    refuse = 'if is_draining(): return pb_utils.InferenceResponse([], pb_utils.TritonError("retry elsewhere"))'
    for name, doing, answer in (("door", "DOOR", refuse), ("work", "0", "time.sleep(2)")):
        add_model(tmp_path / "repository", name)
        (tmp_path / "repository" / name / "1/model.py").write_text(SLOW.format(doing=doing, answer=answer))
    served = serve(tmp_path / "repository", "--log-file", str(tmp_path / "log"))
    pid = served.ready_pid()
    with ThreadPoolExecutor(3) as threads:
        accepted = [threads.submit(ask, served, "work") for _ in range(2)]  # one of them waits for the other
        wait_for(lambda: "OUT" in ask(served, "door"), 30)
        served.process.terminate()
        served.said("draining: new requests are refused")
        assert "retry elsewhere" in ask(served, "door")
        assert all("OUT" in each.result() for each in accepted)
    assert "stopping the server" in served.rest()
    assert served.process.returncode == 0
    assert_nothing_left(pid)


def test_drain_ends_a_serve_that_would_wait_longer(tmp_path: Path, serve: Callable[..., Serving]) -> None:
    add_model(tmp_path / "repository", "work")
    code = SLOW.format(doing="0", answer="time.sleep(60)")
    (tmp_path / "repository/work/1/model.py").write_text(code)
    served = serve(tmp_path / "repository", "--log-file", str(tmp_path / "log"), "--grace", "60", "--stop-timeout", "2")
    pid = served.ready_pid()
    with ThreadPoolExecutor(1) as threads:
        given_up = threads.submit(ask, served, "work")
        time.sleep(1)
        started = time.monotonic()
        command = [COMMAND, "drain", "--url", served.http_url, "--grace", "1"]
        drained = subprocess.run(command, capture_output=True, text=True, check=False)
        assert time.monotonic() - started < 30
        assert drained.returncode == 1
        assert "had not ended within 1 s were given up" in drained.stderr
        assert given_up.exception() is not None or "OUT" not in given_up.result()
    assert served.process.wait(10) == 0
    assert_nothing_left(pid)


def ask(served: Serving, model: str) -> str:
    """What a model answers."""
    tensor = {"name": "IN", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    request = urllib.request.Request(
        f"{served.http_url}/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode(), method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read())
    except urllib.error.HTTPError as error:
        return str(error.read())


def test_a_server_that_ends_is_started_again_on_its_ports(fine: Path, serve: Callable[..., Serving]) -> None:
    served = serve(fine)
    url, pids = served.http_url, [served.ready_pid()]
    for _ in range(2):
        assert is_ready(url, "calm")
        os.kill(stub_of(pids[-1]), signal.SIGSTOP)
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(served.ready_pid())
        assert_nothing_left(pids[-2])
    os.kill(pids[-1], signal.SIGABRT)
    messages = served.rest()
    assert served.process.returncode == 1
    assert "it ended 3 times in 60 s of serving and is not started again" in messages
    assert "error: tritonserver ended by itself (signal SIGABRT)" in messages
    for pid in pids:
        assert_nothing_left(pid)


def test_a_server_that_is_killed_while_it_loads_is_started_again(tmp_path: Path, serve: Callable[..., Serving]) -> None:
    add_model(tmp_path / "slow", "slow", "import time; time.sleep(3)")
    served = serve(tmp_path / "slow")
    server = psutil.Process(served.first_process("slow")).ppid()
    os.kill(server, signal.SIGKILL)
    assert served.ready_pid() != server
    assert is_ready(served.http_url, "slow")


def test_an_option_that_the_server_refuses_ends_the_command(fine: Path, serve: Callable[..., Serving]) -> None:
    served = serve(fine, "--", "--no-such-option=1")
    _out, messages = served.process.communicate(timeout=60)
    assert served.process.returncode == 1
    assert "started again" not in messages
    assert "no-such-option" in messages


def test_server_ends_with_a_killed_launcher(fine: Path, serve: Callable[..., Serving]) -> None:
    served = serve(fine)
    pid = served.ready_pid()
    served.process.kill()
    wait_for(lambda: not group_members(pid), 30)
    assert regions(pid) == []
