"""Shards with entries of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import checkpoints
from edits import LocalEdits
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.shared_memory.host_cache import HostCache
from template_shards import FIELDS, TemplateShard


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> LocalEdits:
    return LocalEdits(Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl"))))


@pytest.fixture
def shards(edits: LocalEdits, tmp_path: Path) -> Iterator[Callable[..., TemplateShard]]:
    """Makes shards with room for so many bytes, in memory and, if wanted, on disk."""
    made: list[TemplateShard] = []

    def make(*sizes: int) -> TemplateShard:
        tiers = tuple(HostCache(tmp_path / f"{number}", size, wait_s=0.0) for number, size in enumerate(sizes))
        made.append(TemplateShard(edits, tiers))
        return made[-1]

    yield make
    for shard in made:
        runs, room = shard.edits.token_runs, shard.edits.token_bytes
        assert runs.memory.free == room // 2 and runs.writer is not None and runs.writer.has_room(room // 4)


@pytest.fixture
def shard(shards: Callable[..., TemplateShard]) -> TemplateShard:
    return shards(2**28)


@pytest.fixture(scope="module")
def exact(edits: LocalEdits) -> torch.Tensor:
    """Latents of `FIELDS`, all computed."""
    edits.templates = None
    edits.make_token_runs()
    return edits.latents(edits.parse(**FIELDS))
