"""What several unit tests of LoRA stores start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from file_server import FileServer, file_server
from lora_stores import Setup


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    made = Setup(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with file_server() as running:
        yield running
