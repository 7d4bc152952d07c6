"""LORAS, LORA_BOUND and LORA_PATCH_STEP: what they are completed to, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.lora.loading.catalogue import Catalogue
from swiftdiffusion.python_backends.request.completed import CompletedRequest, LoraUse
from swiftdiffusion.python_backends.request.parsing import parse_request
from swiftdiffusion.python_backends.request.rules import RequestRules
from wire import array

RULES = RequestRules(
    steps=20,
    guidance_scale=5.0,
    height=64,
    width=64,
    size_multiple=16,
    max_size=256,
    own_scheduler="PNDMScheduler",
    lora_bound=3,
    max_loras=3,
)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    for name in ("papercut", "neon", "sketch", "night"):
        (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / "catalogue.json").write_text(json.dumps({"loras": {"neon": {"bound": 7}}}))
    return Catalogue(tmp_path)


def parse(catalogue: Catalogue, loras: Any, **fields: Any) -> CompletedRequest:
    text = loras if isinstance(loras, str) else json.dumps(loras)
    tensors = {name: array(name, value)[0] for name, value in {"PROMPT": "x", "LORAS": text, **fields}.items()}
    return parse_request(tensors, RULES, catalogue)


def test_bounds_come_from_the_request_then_the_catalogue_then_the_server(catalogue: Catalogue) -> None:
    asked = [{"name": "neon"}, {"name": "papercut", "scale": 0.5}]
    assert parse(catalogue, asked).loras == (LoraUse("neon", 1.0, 7), LoraUse("papercut", 0.5, 3))
    assert [use.bound for use in parse(catalogue, asked, LORA_BOUND=0).loras] == [0, 0]


def test_a_profiles_bound_is_scaled_to_the_requests_steps(catalogue: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "night.profile.json").write_text(json.dumps({"bound": 5, "steps": 20}))
    bounds = [parse(catalogue, [{"name": "night"}], STEPS=steps).loras[0].bound for steps in (20, 50, 7, 3)]
    assert bounds == [5, 12, 1, 0]


def test_patch_steps_replay_a_run(catalogue: Catalogue) -> None:
    asked = [{"name": "neon", "patch_step": 2}, {"name": "papercut"}]
    assert [use.patch_step for use in parse(catalogue, asked, LORA_PATCH_STEP=5).loras] == [2, 5]


@pytest.fixture
def few_steps(tmp_path: Path) -> Catalogue:
    loras = {
        "lightning": {"steps": 4, "guidance_scale": 0, "scheduler": "euler_trailing", "scale": 0.5},
        "hyper": {"steps": 8, "scheduler": "ddim_trailing"},
        "turbo": {"steps": 4},
        "odd": {"steps": 5000, "scheduler": "nextyears"},
        "plain": {},
    }
    (tmp_path / "catalogue.json").write_text(
        json.dumps({"loras": {name: {"location": "x", **values} for name, values in loras.items()}})
    )
    return Catalogue(tmp_path)


def test_a_silent_request_takes_its_loras_defaults(few_steps: Catalogue) -> None:
    silent = parse(few_steps, [{"name": "lightning"}, {"name": "plain"}, {"name": "turbo"}])
    assert (silent.steps, silent.guidance_scale, silent.scheduler) == (4, 0.0, "euler_trailing")
    assert [use.scale for use in silent.loras] == [0.5, 1.0, 1.0]
    assert silent.lora_defaults == dict.fromkeys(("steps", "guidance_scale", "scheduler"), "lightning")
    assert CompletedRequest.from_json(silent.to_json()) == silent


def test_what_the_request_says_comes_first(few_steps: Catalogue) -> None:
    said = {"STEPS": 6, "GUIDANCE_SCALE": 2.0, "SCHEDULER": "ddim"}
    request = parse(few_steps, [{"name": "lightning", "scale": 1.0}, {"name": "hyper"}, {"name": "odd"}], **said)
    assert (request.steps, request.guidance_scale, request.scheduler) == (6, 2.0, "ddim")
    assert request.loras[0].scale == 1.0
    assert request.lora_defaults == {}


@pytest.mark.parametrize(
    ("names", "fields", "said"),
    [
        (
            ["lightning", "hyper"],
            {},
            "STEPS is missing; required here, since the LoRAs' defaults differ: 4 (lightn",
        ),
        (
            ["lightning", "hyper"],
            {"STEPS": 4},
            "SCHEDULER is missing; required here, since the LoRAs' defaults differ: \"eu",
        ),
        (["odd"], {}, "STEPS is 5000 (the default of odd); allowed: 1 to 200"),
        (["odd"], {"STEPS": 4}, 'SCHEDULER is "nextyears" (the default of odd); allowed by this checkpoint: euler,'),
    ],
)
def test_defaults_that_cannot_be_taken_are_named(
    few_steps: Catalogue, names: list[str], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequestError) as error:
        parse(few_steps, [{"name": name} for name in names], **fields)
    assert said in str(error.value)


def test_loras_travel_as_json(catalogue: Catalogue) -> None:
    request = parse(catalogue, [{"name": "neon", "scale": -0.25, "patch_step": 0}, {"name": "night"}])
    assert CompletedRequest.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        ([{"name": "papercutt"}], 'LORAS names "papercutt"; allowed: names of the catalogue, the nearest: papercut'),
        ([{"name": "../../etc/passwd"}], 'LORAS names "../../etc/passwd"; allowed'),
        ([{"name": "https://host/x"}], 'LORAS names "https://host/x"; allowed'),
        ([{"name": "neon"}, {"name": "neon"}], 'LORAS names "neon" twice'),
        ([{"name": "neon", "scale": 11}], "LORAS[0].scale is 11"),
        ([{"name": "neon", "path": "x"}], "LORAS[0].path"),
        ([{"name": "neon", "patch_step": -1}], "LORAS[0].patch_step is -1"),
        (
            [{"name": name} for name in ("neon", "night", "papercut", "sketch")],
            "LORAS has 4 entries; allowed: at most 3",
        ),
        ({"name": "neon"}, "LORAS is"),
        ("night", 'LORAS is "night": Invalid JSON'),
        ([{"nam": "night"}], "LORAS[0].name is missing; allowed: "),
        ("[", "LORAS"),
        ('[{"name": "neon", "scale": NaN}]', "LORAS"),
    ],
)
def test_refusals_name_the_field(catalogue: Catalogue, loras: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(catalogue, loras)
    assert message in str(caught.value)


def test_without_a_catalogue_every_name_is_unknown() -> None:
    with pytest.raises(InvalidRequestError, match="this server has no LoRAs"):
        parse(Catalogue(None), [{"name": "neon"}])
