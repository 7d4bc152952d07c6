"""Shards without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from lone_shard import LoneShard


@pytest.fixture
def shards() -> Iterator[Callable[..., LoneShard]]:
    with ExitStack() as open_:

        def start(*args: Any, **options: Any) -> LoneShard:
            made = LoneShard(*args, **options)
            open_.callback(made.engine.close)
            return made

        yield start


@pytest.fixture
def shard(shards: Callable[..., LoneShard]) -> LoneShard:
    return shards()
