"""Pictures of a request that the decoder has stay until it has ended, in whatever way; then they may go."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from model_process import own_metrics

from swiftdiffusion.python_backends.backend import request_ends
from swiftdiffusion.python_backends.backend.request_ends import Ending, RequestEnds
from swiftdiffusion.python_backends.common.errors import UnexpectedError
from swiftdiffusion.python_backends.engine.handed_over import HandedOver
from swiftdiffusion.python_backends.shared_memory.leased_files import LeasedFiles
from swiftdiffusion.python_backends.shared_memory.pictures import Pictures

ENDING = Ending("run", None, "tiny", at=0.0)


class Server:
    """A denoiser with a picture, and what it has handed over."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.ends = directory, RequestEnds(directory)
        self.pictures = Pictures(directory / "images")
        self.handed_over = HandedOver(self.ends)

    def hand_over(self) -> None:
        self.ends.accept(ENDING)
        self.ends.take("run")
        with ExitStack() as held:
            held.enter_context(self.pictures.lease(self.pictures.put(np.zeros((8, 8, 3), np.uint8))))
            self.ends.hand_on("run")
            self.handed_over.keep("run", held.pop_all())

    def keeps(self) -> bool:
        """Whether the picture stays, where there is no room for it."""
        self.handed_over.give_up()
        files = LeasedFiles(self.directory / "images", ".safetensors", lambda _bytes: None)
        with files.writing():
            files.evict(1)
        return bool(files.sizes())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with own_metrics():
        yield Server(tmp_path)


def picture(server: Server) -> None:
    server.ends.picture(ENDING)


def failure(server: Server) -> None:
    server.ends.failed(ENDING, UnexpectedError("decoding failed"))


def death(server: Server) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as decoder:
        decoder.wait()
    (file,) = (server.directory / "requests").iterdir()
    file.rename(file.with_name(f"run@{decoder.pid}"))
    server.ends.count_lost()


@pytest.mark.parametrize("end", [picture, failure, death])
def test_it_stays_until_the_decoder_has_ended_it(server: Server, end: Callable[[Server], None]) -> None:
    server.hand_over()
    assert server.keeps()
    server.ends.take("run")
    assert server.keeps()
    end(server)
    assert not server.keeps()


def test_what_triton_drops_on_the_way_goes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.hand_over()
    server.ends.count_lost()
    assert server.keeps()
    monkeypatch.setattr(request_ends, "DROPPED_AFTER_S", -1.0)
    server.ends.count_lost()
    assert not server.keeps()
