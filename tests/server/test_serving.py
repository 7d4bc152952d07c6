"""The launcher's server on throwaway repositories."""

import os
import re
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from file_server import wait_for
from swiftdiffusion.python_backends.launcher import ModelLoadError, ServerDiedError, ServerOptions, TritonServer
from swiftdiffusion.python_backends.launcher.processes import group_members
from throwaway import assert_nothing_left, regions, stub_of


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


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


def test_configuration_that_does_not_parse_is_reported(fine: Path) -> None:
    (fine / "calm" / "config.pbtxt").write_text("max_batch_size: many")
    with pytest.raises(ModelLoadError, match="calm"), TritonServer(fine):
        pass


def test_next_start_removes_what_a_killed_server_left(fine: Path) -> None:
    with TritonServer(fine) as living:
        killed = TritonServer(fine)
        killed.start()
        killed.wait_ready()
        pid, stub = killed.pid, stub_of(killed.pid)
        os.kill(stub, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: killed.returncode is not None, 30)
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
