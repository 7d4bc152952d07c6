"""What is known of pictures that requests edit: entries that exact steps leave, and runs that go by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edits import picture
from swiftdiffusion.python_backends.engine.template_store import Company, Place
from swiftdiffusion.python_backends.request.completed import ControlNetUse
from template_shards import BESIDE, SIZE, STEPS, WITHIN, TemplateShard


def test_from_the_second_sight_on_entries_are_left_and_then_gone_by(shard: TemplateShard) -> None:
    assert (shard.edit(MASK_AWARE="fast")[1] or {})["source"] == "own" and shard.entries() == []
    assert (shard.edit(MASK_AWARE="fast")[1] or {})["source"] == "own"
    assert len(shard.entries()) == 2 * len([0, 1, 5, 9, 13, 17])
    _, third = shard.edit(MASK_AWARE="fast")
    assert third is not None and third["source"] == "template" and third["same_prompt"]
    # An entry serves the steps beside its own: those of 3, 7, 11, 15 lacked one, and leave it now.
    assert (third["exact_steps"], third["misses"]) == ([3, 7, 10, 11, 15, 19], 4)
    _, fourth = shard.edit(MASK_AWARE="fast")
    assert fourth is not None and (fourth["exact_steps"], fourth["misses"]) == ([10, 19], 0)
    assert fourth["cache_error"] < 0.1


def test_exact_requests_leave_entries_of_pictures_that_are_known(shard: TemplateShard, exact: torch.Tensor) -> None:
    latents, report = shard.edit()
    assert torch.equal(latents, exact) and report is None and shard.entries() == []
    shard.edit(MASK_AWARE="fast")
    latents, report = shard.edit()
    assert torch.equal(latents, exact) and report is None
    assert len(shard.entries()) == 2 * STEPS
    latents, report = shard.edit()
    assert torch.equal(latents, exact) and len(shard.entries()) == 2 * STEPS


def test_with_entries_of_the_same_run_the_picture_is_the_exact_one(shard: TemplateShard, exact: torch.Tensor) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    latents, report = shard.edit(MASK_AWARE='{"source": "template", "exact_steps": []}')
    assert report is not None and (report["source"], report["exact_steps"]) == ("template", [])
    assert (latents - exact).abs().max() < 0.02 * exact.abs().max()  # a byte a value
    _, balanced = shard.edit(MASK_AWARE="balanced", SEED=4)
    assert balanced is not None and balanced["exact_steps"] == [5, 10, 15, 19]
    _, report = shard.edit(MASK_AWARE="fast", STEPS=8)
    assert report is not None and (report["source"], report["exact_steps"], report["misses"]) == ("template", [4, 7], 0)


def test_entries_of_another_prompt_serve_but_not_those_of_none(shard: TemplateShard) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    _, other = shard.edit(MASK_AWARE="fast", PROMPT="a dog")
    assert other is not None and (other["source"], other["same_prompt"]) == ("template", False)
    before = len(shard.entries())
    shard.edit(PROMPT=" ")
    assert len(shard.entries()) == before + STEPS  # of the conditional half
    _, blank = shard.edit(MASK_AWARE="fast", PROMPT=" ")
    assert blank is not None and blank["source"] == "template"
    assert shard.begin(MASK_AWARE="fast", PROMPT="a bird", NEGATIVE_PROMPT="dull").token_run is not None


@pytest.mark.parametrize(
    "other",
    [
        {"INIT_IMAGE": picture(*SIZE, 1)},
        {"MASK_IMAGE": BESIDE},
        {"MASK_IMAGE": WITHIN},
        {"PROMPT": "", "NEGATIVE_PROMPT": "blurry"},
    ],
    ids=["another picture", "another mask", "a smaller mask", "no prompt"],
)
def test_what_entries_do_not_say_is_a_miss_and_exact(shard: TemplateShard, other: dict[str, Any]) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    asked = {"MASK_AWARE": '{"source": "template", "exact_steps": []}'} | other
    latents, report = shard.edit(**asked)
    assert report is not None
    if "PROMPT" in other:  # the unconditional half is known
        assert report["misses"] == STEPS and report["exact_steps"] == list(range(STEPS))
    else:
        assert (report["mode"], report["why"]) == ("exact", "nothing is known of the picture")
        assert torch.equal(latents, shard.edit(**asked | {"MASK_AWARE": "exact"})[0])


def test_a_larger_mask_goes_by_entries_of_one_within(shard: TemplateShard) -> None:
    shard.edit(MASK_AWARE="fast", MASK_IMAGE=WITHIN)
    shard.edit(MASK_IMAGE=WITHIN)
    _, report = shard.edit(MASK_AWARE="fast")
    assert report is not None and report["source"] == "template"


def test_a_lora_that_goes_on_in_mid_run_misses_and_hits_the_next_time(shard: TemplateShard) -> None:
    def edited() -> dict[str, Any]:
        run = shard.begin(MASK_AWARE="fast")
        while run.step < 7:
            shard.edits.step(run)
        run.loras.current = (("another", 1.0),)
        report = shard.finish(run)[1]
        assert report is not None
        return report

    shard.edit(MASK_AWARE="fast")
    shard.edit()
    first = edited()
    assert (first["source"], first["exact_steps"]) == ("mixed", [7, 8, 9, 13, 17])
    second = edited()
    assert second["source"] == "template" and second["exact_steps"] == [10, 11, 15, 19]
    assert edited()["exact_steps"] == [10, 19]


@pytest.mark.parametrize("window", [(0.0, 0.6), (0.4, 1.0), (0.25, 0.5)])
def test_a_controlnet_with_a_window_goes_by_what_a_run_like_it_left(
    shard: TemplateShard, window: tuple[float, float]
) -> None:
    """Each side of the window has entries of its own, and all that it needs."""

    def edited(**fields: Any) -> dict[str, Any]:
        run = shard.begin(**fields)
        use = ControlNetUse("edges", ("0" * 64,), 1.0, *window, guess_mode=False)
        run.request = replace(run.request, controlnets=(use,))
        return shard.finish(run)[1] or {}

    shard.edit(MASK_AWARE="fast")
    edited()
    report = edited(MASK_AWARE="fast")
    assert (report["source"], report["exact_steps"], report["misses"]) == ("template", [10, 19], 0)


def test_a_lora_with_a_patch_step_goes_by_what_a_run_like_it_left(shard: TemplateShard) -> None:
    def edited(**fields: Any) -> dict[str, Any]:
        run = shard.begin(**fields)
        change, run.loras.next_change = 8, lambda step, steps: change if step < change else steps  # type: ignore[method-assign]
        while run.step < change:
            shard.edits.step(run)
        run.loras.current = (("another", 1.0),)
        return shard.finish(run)[1] or {}

    shard.edit(MASK_AWARE="fast")
    edited()
    report = edited(MASK_AWARE="fast")
    assert (report["source"], report["exact_steps"], report["misses"]) == ("template", [10, 19], 0)


def test_entries_that_have_gone_are_missed(shard: TemplateShard, exact: torch.Tensor) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    run = shard.begin(MASK_AWARE='{"source": "template", "exact_steps": []}')
    shard.edits.step(run)
    for entry in shard.entries():
        entry.unlink()
    _, report = shard.finish(run)
    assert report is not None and report["exact_steps"] == list(range(2, STEPS))  # the second one's was on its way
    assert len(shard.entries()) == 2 * (STEPS - 2)


def test_entries_that_come_while_a_run_goes_on_are_found(shard: TemplateShard, tmp_path: Path) -> None:
    """The request before may have been answered sooner than its last entries were written."""
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    late = sorted(shard.entries(), key=lambda path: int(path.stem.rpartition("-")[2]))[:4]  # of the last two steps
    for path in late:
        path.rename(tmp_path / path.name)
    run = shard.begin(MASK_AWARE='{"source": "template", "exact_steps": []}')
    while run.step < 10:
        shard.edits.step(run)
    for path in late:
        (tmp_path / path.name).rename(path)
    _, report = shard.finish(run)
    assert report is not None and (report["misses"], report["exact_steps"]) == (0, [])


def test_few_steps_are_exact_where_nothing_is_known_and_shared_with_other_shards(shard: TemplateShard) -> None:
    run = shard.begin(MASK_AWARE="fast", STEPS=8)
    assert run.is_mask_aware
    shard.edits.step(run)
    assert not run.is_mask_aware
    report = shard.finish(run)[1] or {}
    assert report["why"] == "8 steps taken are too few; 16 are enough, or a template of the picture"


@pytest.mark.parametrize("varied", ["PROMPT", "NEGATIVE_PROMPT"])
@pytest.mark.parametrize(
    ("scheduler", "steps", "requests"),
    [
        ("euler", 4, 2),
        ("euler", 8, 2),
        ("euler", 18, 2),
        ("euler", 19, 1),
        ("euler", STEPS, 1),
        ("dpmpp_2m_karras", STEPS, 1),
        ("lcm", STEPS, 1),
        ("heun", STEPS, 1),
        ("heun", 6, 2),
    ],
)
def test_what_several_shards_share_out_leaves_entries_of_both_halves(
    shard: TemplateShard, scheduler: str, steps: int, requests: int, varied: str
) -> None:
    """By turns where every second step of a half is enough for it, else one half a request; of whatever prompts."""
    asked = {"STEPS": steps, "SCHEDULER": scheduler, "shards": 2}
    shard.edit(MASK_AWARE="fast", **asked)
    for number in range(requests):
        shard.edit(**asked | {varied: f"{number} cats"})
    _, report = shard.edit(MASK_AWARE="fast", **asked)
    assert report is not None and report["source"] == "template" and not report["same_prompt"]
    assert report["misses"] == (6 if scheduler == "dpmpp_2m_karras" else 0)  # in either half, of three quarters each


def test_without_guidance_shards_share_nothing_and_all_is_left(shard: TemplateShard) -> None:
    asked = {"STEPS": 8, "GUIDANCE_SCALE": 1.0, "shards": 2}
    shard.edit(MASK_AWARE="fast", **asked)
    shard.edit(**asked)
    _, report = shard.edit(MASK_AWARE="fast", **asked)
    assert report is not None and (report["source"], report["exact_steps"], report["misses"]) == ("template", [4, 7], 0)


def test_presets_of_few_steps_alone_leave_entries_of_both_halves(shard: TemplateShard) -> None:
    """While one half lacks them all is computed: with the other alone masked, no idle shard could help."""
    found = [shard.edit(MASK_AWARE="fast", STEPS=8, shards=2)[1] or {} for _ in range(4)]
    assert [each["mode"] for each in found] == ["exact", "exact", "exact", "tokens"]
    assert (found[3]["exact_steps"], found[3]["misses"]) == ([4, 7], 0)


def test_all_steps_named_is_another_reason_than_nothing_known(shard: TemplateShard) -> None:
    asked = f'{{"source": "template", "exact_steps": {list(range(STEPS))}}}'
    shard.edit(MASK_AWARE=asked)
    assert (shard.edit(MASK_AWARE=asked)[1] or {})["why"] == "nothing is known of the picture"
    assert (shard.edit(MASK_AWARE=asked)[1] or {})["why"] == "no step was left for it"


def test_what_becomes_of_entries_is_counted_by_halves_of_steps(shard: TemplateShard) -> None:
    counted = shard.counted
    shard.edit(MASK_AWARE="fast")
    assert not counted
    shard.edit(MASK_AWARE="fast")
    assert counted["written"] == len(shard.entries()) == 12 and counted["bytes"] > 0
    assert not {"hit", "miss", "dropped"} & counted.keys()
    _, third = shard.edit(MASK_AWARE="fast")
    assert third is not None and (len(third["exact_steps"]), third["misses"]) == (6, 4)
    assert (counted["hit"], counted["miss"], counted["written"]) == (2 * (STEPS - 6), 2 * 4, len(shard.entries()))


def test_another_network_has_other_entries(shard: TemplateShard) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    shard.edits.make_token_runs(digest="another")
    _, report = shard.edit(MASK_AWARE="fast")
    assert report is not None and report["source"] == "own"


def test_entries_with_controlnets_are_of_one_server_others_of_the_network() -> None:
    use = ControlNetUse("edges", ("0" * 64,), 1.0, 0.0, 1.0, guess_mode=False)
    alone, controlled = (Company((), controls, "0" * 16) for controls in ((), (use,)))
    here, there = (Place("network", "picture", "conditional", server) for server in ("here", "there"))
    assert here.slot(alone) == there.slot(alone) != here.slot(controlled) != there.slot(controlled)
    other = Company((), (replace(use, scale=0.5),), "0" * 16)
    assert here.slot(controlled) != here.slot(other)
    assert here.slot(Company((("a", 1.0),), (), "0" * 16)) != here.slot(Company((("a", 0.5),), (), "0" * 16))
