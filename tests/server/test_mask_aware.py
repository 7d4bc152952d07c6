"""Mask-aware requests over the server: near the exact picture, the same in company, exact where nothing is known."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edits import TOLERANCE, box, picture
from file_server import wait_for
from shard_roles import roles
from swiftdiffusion.clients import Client, GenerationRequest
from swiftdiffusion.export.demo.checker import check
from swiftdiffusion.export.demo.edits import scene_edits
from wire import generate, latest_metrics, metrics, stub_of

if TYPE_CHECKING:
    from conftest import TinyServer

    from swiftdiffusion.python_backends.launcher import TritonServer

STEPS = 20
FIELDS: dict[str, Any] = {
    "PROMPT": "a cat",
    "SEED": 3,
    "STEPS": STEPS,
    "GUIDANCE_SCALE": 5.0,
    "STRENGTH": 1.0,
    "SCHEDULER": "euler",
    "INIT_IMAGE": picture(64, 64),
    "MASK_IMAGE": box(64, 64, 13, 10, 45, 40),
}
FAST = [0, 1, 5, 9, 13, 17]
OWN = '{"source": "own", "exact_steps": "%s"}'
"""Goes by nothing that requests before have left."""


def left(told: dict[str, float], model: str) -> float:
    """Entries of known pictures that a pipeline has written, or dropped."""
    name = "swiftdiffusion_template_entries_total"
    return sum(told[f'{name}{{outcome="{outcome}",pipeline="{model}"}}'] for outcome in ("written", "dropped"))


def test_the_demos_pictures_are_near_the_exact_ones(server: TritonServer) -> None:
    with Client(server.grpc_url) as client:
        for edit in islice(scene_edits(), 2):
            request = GenerationRequest(
                edit.after, seed=edit.seed, strength=1.0, init_image=edit.picture, mask_image=edit.mask
            )
            exact = client.generate(request)
            assert exact.info.editing is None
            for preset, decibels in (("fast", 36), ("balanced", 42)):
                made = client.generate(GenerationRequest(**vars(request) | {"mask_aware": preset}))
                inside = edit.mask > 0
                error = np.square(made.pixels[inside].astype(float) - exact.pixels[inside]).mean()
                assert 10 * np.log10(255**2 / error) > decibels
                told = made.info.editing
                assert told is not None and told.mode == "tokens" and told.source == "own"
                assert told.mask == pytest.approx(inside.mean(), abs=0.05) and told.cache_error
                assert check(made.pixels, edit.scene).shapes


@pytest.mark.parametrize(("preset", "seed"), [("fast", 3), ("balanced", 4)])
def test_what_unrelated_prompts_left_of_a_picture_spoils_nothing(server: TritonServer, preset: str, seed: int) -> None:
    edit = next(scene_edits(seed))
    asked = GenerationRequest(edit.after, seed=7, strength=1.0, init_image=edit.picture, mask_image=edit.mask)
    other = replace(asked, prompt="a blue ring on a black background")
    with Client(server.grpc_url) as client:
        exact = client.generate(asked)
        before = left(metrics(server), "sdxl")
        for each in (replace(other, mask_aware="fast"), other, other):  # the last two leave all their steps
            client.generate(each)
        wait_for(lambda: left(latest_metrics(server), "sdxl") >= before + 2 * STEPS)
        made = client.generate(replace(asked, mask_aware=preset))
    inside = edit.mask > 0
    error = np.square(made.pixels[inside].astype(float) - exact.pixels[inside]).mean()
    assert 10 * np.log10(255**2 / error) > 36
    assert made.info.editing is not None and made.info.editing.source == "mixed"


def test_what_is_computed_is_told(tiny: TinyServer) -> None:
    made = generate(tiny, tiny.model, **FIELDS, MASK_AWARE=OWN % "fast")
    assert made.info["editing"]["exact_steps"] == FAST
    assert "misses" not in made.info["editing"]
    few = generate(tiny, tiny.model, **FIELDS | {"STEPS": 8}, MASK_AWARE="fast")
    told = few.info["editing"]
    assert told["mode"] == "exact" and "8 steps taken are too few; 16 are enough" in told["why"]
    assert few.distance(generate(tiny, tiny.model, **FIELDS | {"STEPS": 8})) <= TOLERANCE
    assert "editing" not in generate(tiny, tiny.model, **FIELDS, MASK_AWARE="exact").info


def test_in_company_pictures_are_what_they_are_alone(tiny: TinyServer) -> None:
    plain = {name: FIELDS[name] for name in ("PROMPT", "SEED", "STEPS", "GUIDANCE_SCALE", "SCHEDULER")}
    other = {"MASK_IMAGE": box(64, 64, 20, 20, 60, 52), "MASK_AWARE": OWN % "balanced"}
    requests = [FIELDS | {"MASK_AWARE": OWN % "fast"}, FIELDS | other, FIELDS, plain, plain | {"SEED": 9}]
    alone = [generate(tiny, tiny.model, **fields) for fields in requests]
    with ThreadPoolExecutor(len(requests)) as threads:
        together = list(threads.map(lambda fields: generate(tiny, tiny.model, **fields), requests))
    for made, wanted in zip(together, alone, strict=True):
        assert made.distance(wanted) <= TOLERANCE
        assert made.info.get("editing", {}).get("exact_steps") == wanted.info.get("editing", {}).get("exact_steps")


def test_what_exact_steps_leave_serves_whoever_edits_the_picture_again(tiny: TinyServer) -> None:
    fields = FIELDS | {"INIT_IMAGE": picture(64, 64, sum(tiny.model.encode()))}  # the models share what was seen
    exact = generate(tiny, tiny.model, **fields)
    first = generate(tiny, tiny.model, **fields, MASK_AWARE="fast")
    assert first.info["editing"]["source"] == "own"
    assert generate(tiny, tiny.model, **fields).distance(exact) <= TOLERANCE  # leaves what it computes
    wanted = {"mode": "tokens", "source": "template", "same_prompt": True, "misses": 0, "exact_steps": [10, 19]}
    deadline = time.monotonic() + 10
    while True:  # what is written beside the steps may take a moment
        again = generate(tiny, tiny.model, **fields | {"SEED": 4}, MASK_AWARE="fast").info["editing"]
        if again.items() >= wanted.items() or time.monotonic() > deadline:
            break
    assert again.items() >= wanted.items()
    other = generate(tiny, tiny.model, **fields | {"PROMPT": "a dog"}, MASK_AWARE="fast").info["editing"]
    assert (other["source"], other["same_prompt"]) == ("template", False)


def test_few_steps_that_shards_share_out_leave_both_halves(tiny: TinyServer) -> None:
    fields = FIELDS | {"INIT_IMAGE": picture(64, 64, 7 + sum(tiny.model.encode())), "STEPS": 8}
    first = generate(tiny, tiny.model, **fields, MASK_AWARE="fast")
    assert first.info["editing"]["mode"] == "exact"
    deadline, shared = time.monotonic() + 20, 0
    while shared < 2:
        shared += len(generate(tiny, tiny.model, **fields).info["shards"]) == 2
        assert time.monotonic() < deadline
    while True:  # what is written beside the steps may take a moment
        told = generate(tiny, tiny.model, **fields | {"SEED": 4}, MASK_AWARE="fast").info["editing"]
        if told["mode"] == "tokens" or time.monotonic() > deadline:
            break
    assert (told["source"], told["misses"], told["exact_steps"]) == ("template", 0, [4, 7])


@pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
def test_a_lora_that_goes_on_in_mid_run_misses_and_hits_the_next_time(tiny: TinyServer) -> None:
    fields = FIELDS | {"INIT_IMAGE": picture(64, 64, 2)}
    lora = {"LORAS": '[{"name": "attention", "patch_step": 7}]', "LORA_BOUND": 20}
    found, before = [], left(metrics(tiny), tiny.model)
    for entries in (0, 16, 0):  # of the second run, from whose exact steps' halves on the picture is known
        made = generate(tiny, tiny.model, **fields, **lora, MASK_AWARE="fast")
        assert made.info["loras"][0]["patched_at_step"] == 7
        found.append(made.info["editing"])
        wait_for(lambda: left(latest_metrics(tiny), tiny.model) >= before + entries)  # noqa: B023
    assert [each["source"] for each in found] == ["own", "own", "template"]  # on both sides of the step
    assert found[0]["exact_steps"] == found[1]["exact_steps"] == [0, 1, 5, 7, 8, 9, 13, 17]
    assert not {7, 8, 9, 13, 17} & set(found[2]["exact_steps"])


@pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
def test_a_lora_that_goes_on_in_mid_run_is_missed_for_two_steps(tiny: TinyServer) -> None:
    lora = {"LORAS": '[{"name": "attention", "patch_step": 7}]', "LORA_BOUND": 20}
    made = generate(tiny, tiny.model, **FIELDS, **lora, MASK_AWARE=OWN % "fast")
    assert made.info["loras"][0]["patched_at_step"] == 7
    assert made.info["editing"]["exact_steps"] == [0, 1, 5, 7, 8, 9, 13, 17]


@pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
@pytest.mark.kills
def test_a_shard_that_dies_costs_time_alone(tiny: TinyServer) -> None:
    pictures = {"INIT_IMAGE": picture(160, 160), "MASK_IMAGE": box(160, 160, 13, 10, 125, 125)}
    fields = FIELDS | pictures | {"STEPS": 200, "MASK_AWARE": OWN % "fast"}
    wanted = generate(tiny, tiny.model, **fields)
    with ThreadPoolExecutor(1) as threads:
        victim = threads.submit(generate, tiny, tiny.model, **fields)
        home, _ = roles(tiny)
        os.kill(stub_of(tiny.running, home), signal.SIGKILL)
        assert victim.result().distance(wanted) <= TOLERANCE
