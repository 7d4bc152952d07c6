"""What other prompts left of a picture: tried in a run's first step, and gone by where it is near enough."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from swiftdiffusion.python_backends.engine import token_runs
from swiftdiffusion.python_backends.engine.guidance import CONDITIONAL
from swiftdiffusion.python_backends.engine.template_lines import TemplateLine
from template_shards import STEPS, TemplateShard

OTHER = {"PROMPT": "a dog", "NEGATIVE_PROMPT": "dull"}


def test_what_another_prompt_left_is_tried_in_the_first_step(shard: TemplateShard) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    _, report = shard.edit(MASK_AWARE="fast", **OTHER)
    assert report is not None and (report["source"], report["exact_steps"]) == ("template", [0, 10, 19])
    assert (report["misses"], report["same_prompt"]) == (0, False) and report["cache_error"] < 0.5
    asked = '{"source": "template", "exact_steps": "fast"}'
    _, report = shard.edit(MASK_AWARE=asked, **OTHER)
    assert report is not None and report["exact_steps"] == [10, 19]


def test_of_what_several_prompts_left_the_nearest_is_gone_by(
    shard: TemplateShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_runs, "NEAR", 10.0)
    shard.edit(MASK_AWARE="fast")
    for prompt in ("a cat", "a house", "a lake", "a tree", "a car"):
        shard.edit(PROMPT=prompt)
    errors: dict[str, float] = {}

    def compare(line: TemplateLine, step: int, *values: Any) -> None:
        compared(line, step, *values)
        if line.error is not None and step == 0:
            errors[line.track.prompt] = float(line.error)

    compared = TemplateLine.compare
    monkeypatch.setattr(TemplateLine, "compare", compare)
    run = shard.begin(MASK_AWARE="fast", PROMPT="a dog")
    shard.edits.step(run)
    assert run.token_run is not None
    line = run.token_run.lines[CONDITIONAL]
    assert isinstance(line, TemplateLine)
    assert len(errors) == 4 and line.track.prompt == min(errors, key=errors.__getitem__)
    shard.finish(run)


def test_what_is_too_far_off_is_not_gone_by(shard: TemplateShard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_runs, "NEAR", 0.0)
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    latents, report = shard.edit(MASK_AWARE="fast", **OTHER)
    assert report is not None and (report["source"], report["exact_steps"]) == ("own", [0, 1, 5, 9, 13, 17])
    own, wanted = shard.edit(MASK_AWARE='{"source": "own", "exact_steps": "fast"}', **OTHER)
    assert torch.equal(latents, own) and report == wanted
    _, again = shard.edit(MASK_AWARE="fast", **OTHER)
    assert again is not None and (again["source"], again["same_prompt"], again["misses"]) == ("template", True, 4)


def test_one_half_may_go_by_a_template_and_the_other_by_its_own_steps(
    shard: TemplateShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_runs, "NEAR", 0.0)
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    _, report = shard.edit(MASK_AWARE="fast", PROMPT="a dog")
    assert report is not None and (report["source"], report["same_prompt"], report["misses"]) == ("mixed", True, 0)
    assert report["exact_steps"] == [0, 1, 5, 9, 10, 13, 17, 19]
    masked, tokens = 2 * STEPS - 2 - 6, report["tokens"]
    assert 1 - masked * (1 - min(tokens)) / (2 * STEPS) <= report["computed"]
    assert report["computed"] <= 1 - masked * (1 - max(tokens)) / (2 * STEPS)


def test_few_steps_compute_all_where_what_is_known_is_too_far_off(
    shard: TemplateShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"STEPS": 8, "MASK_AWARE": "fast"}
    shard.edit(**asked)
    shard.edit(STEPS=8)
    monkeypatch.setattr(token_runs, "NEAR", 0.0)
    latents, report = shard.edit(**asked, PROMPT="a dog")
    assert report is not None and report["why"].endswith(
        "or a template of the picture with a prompt nearer to this one"
    )
    torch.testing.assert_close(latents, shard.edit(STEPS=8, PROMPT="a dog")[0], atol=1e-4, rtol=0)  # alone or together
    _, again = shard.edit(**asked, PROMPT="a dog")
    assert again is not None and (again["source"], again["exact_steps"], again["misses"]) == ("template", [4, 7], 0)


def test_entries_of_the_own_prompt_go_before_those_of_others_and_are_made_whole(shard: TemplateShard) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    dog: dict[str, Any] = {"PROMPT": "a dog", "MASK_AWARE": "fast"}
    _, before = shard.edit(**dog | {"MASK_AWARE": '{"source": "own", "exact_steps": "fast"}'})
    assert before is not None and before["exact_steps"] == [0, 1, 5, 9, 13, 17]
    for misses in (4, 0):
        _, report = shard.edit(**dog)
        assert report is not None and (report["same_prompt"], report["misses"]) == (True, misses)
