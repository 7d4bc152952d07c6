"""A server where the machine has no room, or takes files away: one sentence, nobody else's request, and on it goes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

import checkpoints
import lora_files
from controls import Use, request
from file_server import FileServer, file_server, wait_for
from serve_process import serving
from swiftdiffusion.clients.cli import app
from swiftdiffusion.export.repository.deployment import Deployment
from swiftdiffusion.export.repository.writing import write_pipelines
from swiftdiffusion.python_backends.common.processes import is_alive
from swiftdiffusion.python_backends.common.pulse import SETTLED_S
from swiftdiffusion.python_backends.launcher.binary import find_server_binary
from swiftdiffusion.python_backends.launcher.model_processes import model_processes
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from throwaway import add_model
from wire import PROMPT, generate_with

CAN_MOUNT = subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0
pytestmark = [pytest.mark.kills, pytest.mark.skipif(not CAN_MOUNT, reason="mounts need privileges")]

SMALL = """
mount -t tmpfs -o size=64m tmpfs /dev/shm && mount -t tmpfs -o size=700k tmpfs "$1" && shift && exec "$@"
"""
"""A container's usual 64 MiB of shared memory, and a disk for the LoRA cache with room for three of them."""

HEALED_WITHIN_S = 60.0
AT_ONCE = ("--stop-timeout", "1", "--grace", "0")


@dataclass
class Hard:
    """The server.

    Attributes:
        grpc_url: Of its gRPC API.
        http_url: Of its HTTP API.
        pid: Of tritonserver.
        directory: Of checkpoint, ControlNet `edges`, LoRA catalogue and LoRA cache.
        store: Has the LoRAs `far0` to `far9`.
        model: The public one.
    """

    grpc_url: str
    http_url: str
    pid: int
    directory: Path
    store: FileServer
    model: str = "sd15"

    @property
    def shared_memory(self) -> Path:
        """The server's own."""
        return Path(f"/proc/{self.pid}/root/dev/shm")

    @property
    def disk(self) -> Path:
        """Of its LoRA cache."""
        return Path(f"/proc/{self.pid}/root{self.directory}/cache")

    def controlnet(self, name: str) -> str:
        return name

    def generate(self, *loras: str, **fields: Any) -> Any:
        """A small picture."""
        return generate_with(self, [(name, 1.0) for name in loras], **fields)

    def probe(self) -> str:
        """What `swiftdiffusion probe --ready` says."""
        return CliRunner().invoke(app, ["probe", "--url", self.http_url, "--ready"]).output

    def kill(self, *models: str) -> None:
        """Ends their processes."""
        for process in model_processes(self.pid):
            if process.model in models:
                os.kill(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hard]:
    base = tmp_path_factory.mktemp("hard")
    checkpoint = Checkpoint(checkpoints.sd15(base / "checkpoint", depth=2))
    edges = checkpoints.controlnet(checkpoint.path, base / "edges", 1)
    (base / "loras").mkdir()
    (base / "cache").mkdir()
    modules = {"unet": dict(BaseModules.of(checkpoint).shapes["unet"])}
    lora_files.kohya(modules).save(base / "loras" / "near.safetensors")
    options = {"checkpoint": checkpoint.path, "loras": base / "loras", "unet_shards": 1}
    write_pipelines(Deployment.from_options(None, options, [f"edges={edges}"]).resolve(), base / "repository")
    small = ("unshare", "-m", "sh", "-c", SMALL, "sh", str(base / "cache"))
    environment = {"XDG_CACHE_HOME": str(base / "cache"), "HOME": "/nonexistent"}
    with file_server() as store:
        entries = {}
        for number in range(10):
            made = lora_files.kohya(modules, seed=number).save(base / "made.safetensors")
            entries[f"far{number}"] = {"location": store.add(f"/{number}.safetensors", made.read_bytes())}
        (base / "loras" / "catalogue.json").write_text(json.dumps({"loras": entries}))
        log = ("--log-file", str(base / "log"), *AT_ONCE)
        with serving(base / "repository", *log, prefix=small, environment=environment) as served:
            yield Hard(served.grpc_url, served.http_url, served.ready_pid(), base, store)


@contextmanager
def full(directory: Path) -> Iterator[None]:
    """A file system without room."""
    file = os.open(directory / "fill", os.O_WRONLY | os.O_CREAT)
    try:
        with pytest.raises(OSError, match="No space left"):
            while True:
                os.write(file, bytes(4096))
        yield
    finally:
        os.close(file)
        (directory / "fill").unlink()


@contextmanager
def replaced(file: Path, content: bytes | None) -> Iterator[None]:
    """A file with another content, or none: as a new file, since processes map the old one."""
    kept = file.with_name("kept")
    file.rename(kept)
    try:
        if content is not None:
            file.write_bytes(content)
        yield
    finally:
        kept.rename(file)


def told(hard: Hard, what: str) -> str:
    """The line of `probe` that begins so, once there is one."""
    deadline = time.monotonic() + HEALED_WITHIN_S
    while not (lines := [line for line in hard.probe().splitlines() if line.startswith(what)]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return lines[0]


def test_fetched_loras_make_room_for_each_other_on_a_full_disk(hard: Hard) -> None:
    for number in range(6):
        assert hard.generate(f"far{number}").info["loras"][0]["source"] == "remote"


def test_a_disk_that_others_fill_ends_those_that_need_it(hard: Hard) -> None:
    shutil.rmtree(hard.disk / "swiftdiffusion/loras/content")
    (hard.disk / "swiftdiffusion/loras/content").mkdir()
    with full(hard.disk):
        with pytest.raises(InferenceServerException, match="No space left on device; try again later") as caught:
            hard.generate("far6")
        assert 'LORAS names "far6": this server\'s disk cache cannot take its file' in str(caught.value)
        assert "UNAVAILABLE" in str(caught.value.status())
        assert hard.generate("near").info["loras"]
        assert hard.generate("far5").info["loras"]
    assert hard.generate("far6").info["loras"]


def test_full_shared_memory_ends_those_that_need_it(hard: Hard) -> None:
    with full(hard.shared_memory):
        with pytest.raises(InferenceServerException, match=r"CONTROL_IMAGES: it takes .* try again later") as caught:
            request(hard, Use("edges", seed=1))
        assert "UNAVAILABLE" in str(caught.value.status())
        assert hard.generate(PROMPT=f"{PROMPT} with others' embeddings gone").info["unet_evaluations"]
    assert request(hard, Use("edges", seed=1)).info["controlnets"][0]["calls"] > 0


def test_weights_that_are_gone_at_a_reload(hard: Hard) -> None:
    edges = hard.directory / "edges/diffusion_pytorch_model.safetensors"
    texts = hard.directory / "checkpoint/text_encoder/model.safetensors"
    vae = hard.directory / "checkpoint/vae/diffusion_pytorch_model.safetensors"
    with ExitStack() as gone:
        gone.enter_context(replaced(edges, edges.read_bytes()[:1000]))
        hard.kill("controlnet_edges")
        assert (
            told(hard, "controlnet_edges is down: ControlNetFileError").split(": ", 2)[2].startswith(f"{edges} is no ")
        )
        assert hard.generate().info["unet_evaluations"]
        expected = 'TIMEOUT_MS passed after step 0 of 6; CONTROLNETS names "edges": .* is down and being loaded again'
        with pytest.raises(InferenceServerException, match=expected):
            request(hard, Use("edges"), TIMEOUT_MS=6000)
        gone.enter_context(replaced(texts, b"no weights"))
        gone.enter_context(replaced(vae, None))
        hard.kill("text_encoder", "vae_decoder")
        assert told(hard, "text_encoder is down: CheckpointError").split(": ", 2)[2].startswith(f"{texts} is no ")
        assert (
            told(hard, "vae_decoder is down: CheckpointError").split(": ", 2)[2].startswith(f"{vae.parent} holds no ")
        )
        with pytest.raises(InferenceServerException, match="down and being loaded again; retry in a few seconds"):
            hard.generate(TIMEOUT_MS=1500)
    wait_for(lambda: hard.probe() == "ready\n", HEALED_WITHIN_S)
    time.sleep(SETTLED_S)
    assert request(hard, Use("edges")).info["controlnets"][0]["calls"] > 0


def test_a_server_whose_processes_have_no_shared_memory_is_not_started(tmp_path: Path) -> None:
    for number in range(3):
        add_model(tmp_path / "repository", f"calm{number}")
    small = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh")
    with serving(tmp_path / "repository", prefix=small) as served:
        said = served.said("^error: ")
        assert said.startswith("error: /dev/shm has 1.0 MiB free; the repository's processes begin with 3 MiB")
        assert served.process.wait(10) == 1


STRANGER = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "--inh-caps=+dac_read_search")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that all users can read; those of pytest are this one's."""
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_a_user_without_entry_or_home_and_files_that_nobody_else_reads(public: Path) -> None:
    add_model(public / "repository", "calm")
    own = public / "own"
    own.mkdir()
    os.chown(own, 12345, 12345)
    stranger = (*STRANGER, "--ambient-caps=+dac_read_search", "env", "-u", "HOME")  # the interpreter may be in one
    how = {"prefix": ("sh", "-c", 'umask 077; exec "$@"', "sh", *stranger), "environment": {"TMPDIR": str(own)}}
    stub = find_server_binary().stub()
    with serving(public / "repository", "--log-file", str(own / "log"), *AT_ONCE, **how) as served:
        if stub is None or stub.stat().st_mode & 0o005 == 0o005:
            assert psutil.Process(served.ready_pid()).uids().real == 12345
        else:  # as pip installed it
            assert "may not be run by this user" in served.said("^error: ")


NO_ROOM = 'mount -t tmpfs -o size=8k tmpfs "$1" && head -c 8k /dev/zero >"$1/fill"; exec 2>"$1/said"; shift; exec "$@"'


@pytest.mark.parametrize("how", ["full disk", "broken pipe"])
def test_one_whose_words_nobody_takes_heals_and_survives_a_pause(tmp_path: Path, how: str) -> None:
    """`serve` is stopped for a while, as in a machine that is: nothing that hung meanwhile hangs."""
    add_model(tmp_path / "repository", "calm")
    (tmp_path / "disk").mkdir()
    full_disk = ("unshare", "-m", "sh", "-c", NO_ROOM, "sh", str(tmp_path / "disk"))
    prefix, log = (full_disk, ("--log-file", str(tmp_path / "disk/log"))) if how == "full disk" else ((), ())
    with serving(tmp_path / "repository", *log, *AT_ONCE, prefix=prefix) as served:
        if how == "broken pipe":
            served.process.stderr.close()
            served.process.stderr = None

        def processes() -> list[int]:
            children = psutil.Process(served.process.pid).children(recursive=True)
            return sorted(child.pid for child in children if is_alive(child.pid))

        def is_ready() -> bool:
            return CliRunner().invoke(app, ["probe", "--url", served.http_url, "--ready"]).exit_code == 0

        wait_for(is_ready, HEALED_WITHIN_S)
        before = processes()
        os.kill(before[-1], signal.SIGKILL)
        wait_for(lambda: processes() != before and len(processes()) == len(before) and is_ready(), HEALED_WITHIN_S)
        if how == "full disk":
            return
        before = processes()
        served.process.send_signal(signal.SIGSTOP)
        time.sleep(5)
        served.process.send_signal(signal.SIGCONT)
        wait_for(is_ready, HEALED_WITHIN_S)
        time.sleep(2)
        assert processes() == before
