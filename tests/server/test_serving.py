"""The launcher with real servers on throwaway repositories."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from swiftdiffusion.python_backends.launcher import ModelLoadError, ServerDiedError, ServerOptions, TritonServer
from swiftdiffusion.python_backends.launcher.ports import free_ports
from swiftdiffusion.python_backends.launcher.processes import group_members
from swiftdiffusion.python_backends.launcher.shared_memory import SHARED_MEMORY, region_prefix

CONFIG = """\
backend: "python"
max_batch_size: 1
input [ { name: "IN" data_type: TYPE_FP32 dims: [1] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [1] } ]
instance_group [ { kind: KIND_CPU } ]
"""
ENSEMBLE = """\
platform: "ensemble"
max_batch_size: 1
input [ { name: "IN" data_type: TYPE_FP32 dims: [1] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [1] } ]
ensemble_scheduling { step [ {
  model_name: "boom" model_version: -1 input_map { key: "IN" value: "IN" } output_map { key: "OUT" value: "OUT" } } ] }
"""
MODEL = """\
class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        return [None] * len(requests)
"""


def add_model(repository: Path, name: str, initialize: str = "pass", config: str = CONFIG) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    (repository / name / "1" / "model.py").write_text(MODEL.format(initialize=initialize))


@pytest.fixture
def fine(tmp_path: Path) -> Path:
    add_model(tmp_path / "fine", "calm")
    return tmp_path / "fine"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    add_model(tmp_path / "broken", "boom", 'raise FileNotFoundError("no weights in /nowhere: run make demo")')
    add_model(tmp_path / "broken", "calm")
    add_model(tmp_path / "broken", "composed", config=ENSEMBLE)
    return tmp_path / "broken"


@pytest.fixture
def serve() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts `swiftdiffusion serve` on free ports."""
    started: list[subprocess.Popen[str]] = []

    def run(repository: Path, *arguments: str) -> subprocess.Popen[str]:
        http, grpc, metrics = map(str, free_ports(3))
        ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
        command = [
            str(Path(sys.executable).with_name("swiftdiffusion")),
            "serve",
            "-r",
            str(repository),
            *ports,
            *arguments,
        ]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.terminate()
        process.wait(60)


def ready_pid(process: "subprocess.Popen[str]") -> int:
    """Id of the server's process, once the command says that it is ready, or ready again."""
    assert process.stderr is not None
    for line in process.stderr:
        match = re.match(r"ready(: HTTP \S+ .*| again:) +pid (\d+)", line)
        if match:
            return int(match[2])
    raise AssertionError(f"not ready: exit status {process.wait()}")


def rest_of_messages(process: "subprocess.Popen[str]") -> str:
    """What it writes after `ready_pid` until it ends; `communicate` would miss what was read ahead."""
    assert process.stderr is not None
    messages = process.stderr.read()
    process.wait(60)
    return messages


def http_url(process: "subprocess.Popen[str]") -> str:
    """What it was told to listen on."""
    arguments = list(process.args)  # type: ignore[arg-type]
    return f"http://127.0.0.1:{arguments[arguments.index('--http-port') + 1]}"


def is_ready(url: str, model: str) -> bool:
    with urllib.request.urlopen(f"{url}/v2/models/{model}/ready") as answer:
        return answer.status == 200


def regions(pid: int) -> list[Path]:
    return list(SHARED_MEMORY.glob(f"{region_prefix(pid)}*"))


def assert_nothing_left(pid: int) -> None:
    assert group_members(pid) == []
    assert regions(pid) == []


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def stub_of(pid: int) -> int:
    (stub,) = [member for member in group_members(pid) if member != pid]
    return stub


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ready_inside_and_nothing_left_after(fine: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "server.log"
    with TritonServer(fine, log_file=log) as server:
        for url in (
            f"{server.http_url}/v2/health/ready",
            f"{server.http_url}/v2/models/calm/ready",
            server.metrics_url,
        ):
            with urllib.request.urlopen(url) as response:
                assert response.status == 200
        assert regions(server.pid)
        pid, directory = server.pid, server._directory
        for process in group_members(pid):
            (runtime,) = re.findall(rb"SWIFTDIFFUSION_RUNTIME_DIRECTORY=([^\0]+)", environment(process))
            assert Path(os.fsdecode(runtime)).parent == directory
            assert Path(os.fsdecode(runtime)).stat().st_mode & 0o777 == 0o700
        os.kill(stub_of(pid), signal.SIGSTOP)  # does not keep it from ending in time
        start = time.monotonic()
    assert time.monotonic() - start < 20
    assert_nothing_left(pid)
    assert directory is not None
    assert not directory.exists()
    assert "successfully loaded 'calm'" in log.read_text()


def test_restricted_model_control_is_no_obstacle(fine: Path, broken: Path) -> None:
    options = ServerOptions(extra_arguments=("--http-restricted-api=model-repository:key=secret",))
    with TritonServer(fine, options=options) as server, pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{server.http_url}/v2/repository/index", data=b"")
    with pytest.raises(ModelLoadError, match="model 'boom' failed to load: FileNotFoundError: no weights"):
        TritonServer(broken, options=options).__enter__()


def test_models_that_fail_are_reported_with_their_error_only(broken: Path) -> None:
    server = TritonServer(broken)
    with pytest.raises(ModelLoadError) as caught, server:
        pass
    (failure,) = caught.value.failures
    assert failure.model == "boom"
    assert failure.reason.startswith("FileNotFoundError: no weights in /nowhere: run make demo")
    assert str(caught.value).endswith("not served because of that: composed")
    assert_nothing_left(server._running().pid)


def test_command_reports_a_model_that_fails(broken: Path, serve: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = serve(broken)
    _out, messages = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "model 'boom' failed to load: FileNotFoundError: no weights in /nowhere" in messages
    assert len(messages.splitlines()) < 15
    kept = re.search(r"the server's log: (.+)", messages)
    assert kept
    assert "failed to load 'boom'" in Path(kept[1]).read_text()
    Path(kept[1]).unlink()


def test_configuration_that_does_not_parse_is_reported(fine: Path) -> None:
    (fine / "calm" / "config.pbtxt").write_text("max_batch_size: many")
    with pytest.raises(ModelLoadError, match="calm"), TritonServer(fine):
        pass


def test_command_refuses_a_busy_port_before_it_starts(fine: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        command = [
            str(Path(sys.executable).with_name("swiftdiffusion")),
            "serve",
            "-r",
            str(fine),
            "--grpc-port",
            str(port),
        ]
        http, metrics = map(str, free_ports(2))
        command += ["--http-port", http, "--metrics-port", metrics]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert answer.returncode == 1
    assert f"port {port} is in use" in answer.stderr
    assert "--grpc-port" in answer.stderr
    assert "loaded" not in answer.stderr


def test_sigterm_stops_everything(fine: Path, serve: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = serve(fine)
    pid = ready_pid(process)
    process.terminate()
    messages = rest_of_messages(process)
    assert process.returncode == 0
    assert "Started HTTPService" in messages  # the log is streamed
    assert_nothing_left(pid)


def test_a_server_that_ends_is_started_again_on_its_ports(
    fine: Path, serve: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = serve(fine)
    url, pids = http_url(process), [ready_pid(process)]
    for _ in range(2):
        assert is_ready(url, "calm")
        os.kill(stub_of(pids[-1]), signal.SIGSTOP)
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(ready_pid(process))
        assert_nothing_left(pids[-2])
    os.kill(pids[-1], signal.SIGABRT)
    messages = rest_of_messages(process)
    assert process.returncode == 1
    assert "it ended 3 times in 60 s and is not started again" in messages
    assert "error: tritonserver ended by itself (signal SIGABRT)" in messages
    for pid in pids:
        assert_nothing_left(pid)


def test_a_server_that_is_killed_while_it_loads_is_started_again(
    tmp_path: Path, serve: Callable[..., "subprocess.Popen[str]"]
) -> None:
    add_model(tmp_path / "slow", "slow", "import time; time.sleep(3)")
    process = serve(tmp_path / "slow")
    wait_for(lambda: len(children := psutil.Process(process.pid).children()) == 1 and bool(children[0].children()))
    (server,) = psutil.Process(process.pid).children()
    server.kill()
    assert ready_pid(process) != server.pid
    assert is_ready(http_url(process), "slow")


def test_an_option_that_the_server_refuses_ends_the_command(
    fine: Path, serve: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = serve(fine, "--", "--no-such-option=1")
    _out, messages = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "started again" not in messages
    assert "no-such-option" in messages


def test_server_ends_with_a_killed_launcher(fine: Path, serve: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = serve(fine)
    pid = ready_pid(process)
    process.kill()
    wait_for(lambda: not group_members(pid))
    assert regions(pid) == []


def test_next_start_removes_what_a_killed_server_left(fine: Path) -> None:
    with TritonServer(fine) as living:
        killed = TritonServer(fine)
        killed.start()
        killed.wait_ready()
        pid, stub = killed.pid, stub_of(killed.pid)
        os.kill(stub, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: killed.returncode is not None)
        with pytest.raises(ServerDiedError, match="SIGKILL"):
            killed.check_alive()
        assert regions(pid)  # left behind, and the stopped stub
        assert group_members(pid) == [stub]
        mine = set(regions(living.pid))
        third = TritonServer(fine)
        third.start()
        try:
            wait_for(lambda: not group_members(pid), 5)
            assert regions(pid) == []
            assert mine <= set(regions(living.pid))
            living.check_alive()
        finally:
            third.stop()
        killed.stop()
