"""LoRAs of eight kinds at once on one shard: each request's picture has its own, however they come to share calls."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from lora_kinds import eight_kinds
from lora_oracle import Oracle
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from wire import Loras, Picture, generate_with, metrics

if TYPE_CHECKING:
    from conftest import TinyServer

pytestmark = pytest.mark.parametrize("tiny", ["other"], indirect=True)
STEPS = 20
SETS: dict[str, Loras] = {
    "peft": [("peft", 1.0)],
    "kohya": [("kohya", 0.7)],
    "locon": [("locon", -1.0)],
    "loha": [("loha", 0.8)],
    "lokr": [("lokr", 2.0)],
    "dora": [("dora", 1.0)],
    "oft": [("oft", 0.6)],
    "norms": [("norms", 0.4)],
}


@pytest.fixture(scope="module")
def oracle(tiny: TinyServer) -> Oracle:
    return Oracle(tiny, eight_kinds(Checkpoint(tiny.checkpoint)))


def together(tiny: TinyServer, sets: list[Loras]) -> list[Picture]:
    """Requests that come at once, numbered by their seeds."""
    with ThreadPoolExecutor(len(sets)) as threads:
        jobs = [threads.submit(generate_with, tiny, loras, STEPS=STEPS, SEED=seed) for seed, loras in enumerate(sets)]
        return [job.result() for job in jobs]


def drawn(oracle: Oracle, loras: Loras, seed: int) -> np.ndarray:
    """What diffusers makes of one of them."""
    return oracle.picture(loras, steps=STEPS, generator=torch.Generator("cpu").manual_seed(seed))


def rows(tiny: TinyServer) -> dict[str, float]:
    """Rows with LoRAs so far, by how they had them."""
    name = "swiftdiffusion_lora_rows_total"
    counted = metrics(tiny)
    return {path: counted.get(f'{name}{{path="{path}"}}', 0.0) for path in ("patched", "beside")}


def test_eight_kinds_share_their_steps_and_not_their_weights(tiny: TinyServer, oracle: Oracle) -> None:
    sets = list(SETS.values())
    alone = [generate_with(tiny, loras, STEPS=STEPS, SEED=seed) for seed, loras in enumerate(sets)]
    largest, deadline = 0, time.monotonic() + 60
    while largest < len(sets):  # the last may come when the first is done
        assert time.monotonic() < deadline, largest
        before = rows(tiny)
        shared = together(tiny, sets)
        counted = {path: count - before[path] for path, count in rows(tiny).items()}
        largest = max(picture.info["largest_batch"] for picture in shared)
        told = Counter[str]()
        for loras, solo, picture in zip(sets, alone, shared, strict=True):
            assert picture.distance(solo) <= 0.5, loras
            assert sum(picture.info["lora_path"].values()) == 2 * STEPS
            told.update(picture.info["lora_path"])
        assert counted == {"patched": 0.0, "beside": 0.0} | told
    for seed, (loras, solo, picture) in enumerate(zip(sets, alone, shared, strict=True)):
        assert picture.distance(drawn(oracle, loras, seed)) <= 0.5, loras
        assert picture.distance(drawn(oracle, [], seed)) > 1, loras
        assert solo.info["lora_path"] == {"patched": 2 * STEPS}


def test_sets_of_several_kinds_and_one_without_any(tiny: TinyServer, oracle: Oracle) -> None:
    sets: list[Loras] = [
        [],
        [("peft", 0.5), ("dora", 0.5)],
        [("kohya", 0.4), ("norms", 0.3), ("loha", -0.5)],
        [("lokr", 0.5), ("oft", 0.4)],
        [("peft", -0.5)],
        [("locon", 0.5), ("peft", 0.5)],
    ]
    for seed, (loras, picture) in enumerate(zip(sets, together(tiny, sets), strict=True)):
        assert picture.distance(drawn(oracle, loras, seed)) <= 0.5, loras
        assert ("lora_path" in picture.info) == bool(loras)
