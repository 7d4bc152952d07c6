"""What there is to ask for, as clients are told it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pydantic import ValidationError

from swiftdiffusion.python_backends.request.controlnets import KnownControlNet
from swiftdiffusion.python_backends.request.description import DescribedPipeline, from_json, to_json
from swiftdiffusion.python_backends.request.loras import LoraDefaults
from swiftdiffusion.python_backends.request.rules import RequestRules
from swiftdiffusion.python_backends.request.schedulers import SCHEDULERS

RULES = RequestRules(
    steps=20,
    guidance_scale=5.0,
    height=128,
    width=64,
    size_multiple=8,
    max_size=256,
    own_scheduler="DDIMScheduler",
    schedulers=("euler", "dpmpp_2m_karras"),
)
PIPELINE = DescribedPipeline(RULES, {"union": KnownControlNet(4, False), "edges": KnownControlNet(0, True)}, "../loras")


def test_defaults_limits_and_names_are_told() -> None:
    loras = {"papercut": LoraDefaults(), "lightning": LoraDefaults(steps=4, guidance_scale=0.0, scheduler="euler")}
    assert PIPELINE.description(loras) == {
        "height": 128,
        "width": 64,
        "size_multiple": 8,
        "max_size": 256,
        "steps": 20,
        "max_steps": 200,
        "guidance_scale": 5.0,
        "max_guidance_scale": 50.0,
        "max_prompt_characters": 4096,
        "scheduler": "DDIMScheduler",
        "schedulers": [
            {"name": "euler", "sampler": "Euler", "schedule": "Automatic"},
            {"name": "dpmpp_2m_karras", "sampler": "DPM++ 2M", "schedule": "Karras"},
        ],
        "img2img_strength": 0.3,
        "inpaint_strength": 0.9999,
        "only_inpaints": False,
        "max_loras": 16,
        "loras": [
            {"name": "lightning", "steps": 4, "guidance_scale": 0.0, "scheduler": "euler"},
            {"name": "papercut"},
        ],
        "max_controlnets": 8,
        "controlnets": [{"name": "union", "control_modes": 4}, {"name": "edges", "control_modes": 0}],
    }


def test_it_is_json_and_says_nothing_of_directories() -> None:
    told = json.dumps(PIPELINE.description({}))
    assert json.loads(told) == PIPELINE.description({})
    assert "../loras" not in told


def test_a_repository_holds_it_unchanged() -> None:
    pipelines = {
        "sdxl": PIPELINE,
        "sd15": DescribedPipeline(replace(RULES, schedulers=tuple(SCHEDULERS), slo_factor=2.5), {}, ""),
    }
    assert from_json(to_json(pipelines)) == pipelines
    assert from_json(to_json({})) == {}


@pytest.mark.parametrize("text", ["", "[]", '{"sdxl": {}}', '{"sdxl": {"rules": {}, "controlnets": {}, "loras": ""}}'])
def test_what_was_written_by_nobody_is_no_pipeline(text: str) -> None:
    with pytest.raises(ValidationError):
        from_json(text)
