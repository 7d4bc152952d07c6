"""A tritonserver that somebody else started, as fleets do: no launcher, little shared memory, nothing to write on."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import checkpoints
import lora_files
from swiftdiffusion.clients.cli import app
from swiftdiffusion.export.repository.deployment import Deployment
from swiftdiffusion.export.repository.writing import write_pipelines
from swiftdiffusion.python_backends.launcher.binary import find_server_binary
from swiftdiffusion.python_backends.launcher.ports import free_ports
from swiftdiffusion.python_backends.launcher.shared_memory import remove_stale_regions
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from wire import generate_with

READY_WITHIN_S = 120
CRAMPED = """
mount -t tmpfs -o size=64m tmpfs /dev/shm &&
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"
"""
"""A container's usual 64 MiB of shared memory, and a directory that cannot be written."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with checkpoint, LoRA and repository."""
    base = tmp_path_factory.mktemp("served")
    checkpoint = Checkpoint(checkpoints.sd15(base / "checkpoint", depth=2))
    (base / "loras").mkdir()
    modules = {"unet": dict(BaseModules.of(checkpoint).shapes["unet"])}
    lora_files.kohya(modules).save(base / "loras" / "papercut.safetensors")
    options = {"checkpoint": checkpoint.path, "loras": base / "loras", "unet_shards": 1}
    write_pipelines(Deployment.from_options(None, options, []).resolve(), base / "repository")
    return base


@contextmanager
def plain_server(base: Path, private: Path, mode: str) -> Iterator[SimpleNamespace]:
    """One that is ready, with nothing on its command line that it does not need."""
    can_mount = subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0
    cramped = ["unshare", "-m", "sh", "-c", CRAMPED, "sh", str(base)] if can_mount else []
    binary = find_server_binary()
    backends = binary.assemble_backends(private)
    http, grpc, metrics = free_ports(3, "127.0.0.1")
    command = [
        *cramped,
        str(binary.path),
        f"--model-repository={base / 'repository'}",
        f"--model-control-mode={mode}",
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        f"--metrics-port={metrics}",
        *([f"--backend-directory={backends}"] if backends else []),
    ]
    environment = binary.environment({key: value for key, value in os.environ.items() if key != "HOME"})
    with (private / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        await_ready(f"http://127.0.0.1:{http}/v2/health/ready", process)
        yield SimpleNamespace(grpc_url=f"grpc://127.0.0.1:{grpc}", http_url=f"http://127.0.0.1:{http}", model="sd15")
    finally:
        process.terminate()
        process.wait(30)
        remove_stale_regions()


def await_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"not ready; its exit status: {process.poll()}")


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_a_server_that_nobody_of_ours_started(served: Path, tmp_path: Path, mode: str) -> None:
    with plain_server(served, tmp_path, mode) as server:
        picture = generate_with(server, [("papercut", 1.0)])
        assert picture.info["loras"][0]["modules"] > 0
        assert picture.distance(generate_with(server, [])) > 0
        watch = CliRunner().invoke(app, ["watch", "--url", server.http_url])
    assert watch.exit_code == 1
    assert "was started without --model-control-mode=explicit" in watch.output
