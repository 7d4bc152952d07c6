"""Rows that idle shards evaluate for others: the pictures are the same, whoever lends itself, and until when."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from file_server import wait_for
from lora_oracle import Oracle
from shard_roles import shards_of
from stages import Stages
from wire import PROMPT, generate, latest_metrics, metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import TinyServer

pytestmark = pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
STEPS, MANY, SIDE = 60, 200, 64
FIELDS: dict[str, Any] = {"PROMPT": PROMPT, "GUIDANCE_SCALE": 5.0, "STEPS": STEPS, "HEIGHT": SIDE, "WIDTH": SIDE}
LARGE = 4 * SIDE

FORGOTTEN_S = 0.6
"""After so long without rows a shard is lent to nobody."""


@pytest.fixture(autouse=True)
def nothing_is_lent(tiny: TinyServer) -> None:
    time.sleep(FORGOTTEN_S)


class Run:
    """A request that runs on a shard of the test's choice, and what came of it while it had the server for itself."""

    def __init__(self, tiny: TinyServer, home: str, **fields: Any) -> None:
        self._stages, self._home, self._fields = Stages(tiny), home, FIELDS | fields
        self._latents, _ = self._drawn()

    def again(self) -> dict[str, Any]:
        """INFO of the same, in whatever company."""
        latents, info = self._drawn()
        assert np.abs(latents - self._latents).mean() < 1e-3
        return info

    def _drawn(self) -> tuple[np.ndarray, dict[str, Any]]:
        return self._stages.denoise(self._stages.encode(self._home, **self._fields))


def lent_rows(tiny: TinyServer, read: Callable[[Any], dict[str, float]] = metrics, side: int = SIDE) -> dict[str, int]:
    """Shard → rows that it evaluated for others, so far, if all were of one size."""
    counted, name, row_bytes = read(tiny), "swiftdiffusion_transferred_bytes_total", 4 * 4 * (side // 4) ** 2
    nbytes = {shard: counted.get(f'{name}{{direction="from",model="{shard}"}}', 0.0) for shard in shards_of(tiny)}
    return {shard: int(each) // row_bytes for shard, each in nbytes.items()}


def since(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    """Of those that evaluated any."""
    return {shard: rows - before[shard] for shard, rows in now.items() if rows > before[shard]}


def test_a_run_that_is_helped_for_all_its_life(tiny: TinyServer) -> None:
    """Of several the first whose helper was not kept from it by other programs."""
    expected, deadline = Oracle(tiny, {}).picture([], steps=STEPS, height=SIDE, width=SIDE), time.monotonic() + 60
    lent: dict[str, int] = {}
    while sum(lent.values()) < 0.9 * STEPS:
        assert time.monotonic() < deadline, lent
        before = lent_rows(tiny)
        picture = generate(tiny, tiny.model, SEED=7, **FIELDS)
        lent = since(before, lent_rows(tiny))
        assert sum(lent.values()) <= STEPS
        assert set(lent) < set(picture.info["shards"])
        assert picture.distance(expected) <= 0.5
    assert len(lent) == 1 and len(picture.info["shards"]) == 2


def test_a_helper_that_gets_a_run_of_its_own_helps_no_more_until_it_is_done(tiny: TinyServer) -> None:
    home, *helpers = shards_of(tiny)
    helped = Run(tiny, home, SEED=1, STEPS=2 * STEPS, HEIGHT=LARGE, WIDTH=LARGE)
    others = {shard: Run(tiny, shard, SEED=2, GUIDANCE_SCALE=1.0) for shard in helpers}

    def lent() -> dict[str, int]:
        return lent_rows(tiny, latest_metrics, LARGE)

    with ThreadPoolExecutor(1) as threads:
        before = lent_rows(tiny, side=LARGE)
        first = threads.submit(helped.again)
        wait_for(lambda: any(rows > 5 for rows in since(before, lent()).values()))
        at_first = lent()
        helper = max(helpers, key=lambda shard: at_first[shard] - before[shard])
        info = others[helper].again()
        meanwhile = since(at_first, lent())
        assert not first.done()
        assert {home, helper} <= set(first.result()["shards"])
    assert info["shards"] == [helper]
    assert meanwhile.get(helper, 0) < STEPS / 2, meanwhile


def test_two_runs_want_the_same_helper(tiny: TinyServer) -> None:
    *homes, helper = shards_of(tiny)
    runs = [Run(tiny, home, SEED=1, STEPS=MANY) for home in homes]
    time.sleep(FORGOTTEN_S)
    before = lent_rows(tiny)
    with ThreadPoolExecutor(2) as threads:
        infos = [job.result() for job in [threads.submit(run.again) for run in runs]]
    for home, info in zip(homes, infos, strict=True):
        assert home in info["shards"]
        assert info["largest_batch"] == 1
    assert since(before, lent_rows(tiny)).get(helper, 0) > 0
