"""The wire contract's parser: what it completes, and that nothing out of limits gets past it."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.lora.loading.catalogue import Catalogue
from swiftdiffusion.python_backends.request.completed import CompletedRequest
from swiftdiffusion.python_backends.request.parsing import parse_request
from swiftdiffusion.python_backends.request.rules import RequestRules
from swiftdiffusion.python_backends.request.schedulers import SCHEDULERS
from wire import TYPES, array

RULES = RequestRules(
    steps=20,
    guidance_scale=5.0,
    height=128,
    width=64,
    size_multiple=16,
    max_size=256,
    own_scheduler="PNDMScheduler",
    max_clip_skip=11,
)


def parse(rules: RequestRules = RULES, **fields: Any) -> CompletedRequest:
    """Parses values as the server hands them over: without the batch dimension."""
    arrays = {name: value if isinstance(value, np.ndarray) else array(name, value) for name, value in fields.items()}
    return parse_request({name: tensor[0] for name, tensor in arrays.items()}, rules, Catalogue(None))


def test_defaults_fill_what_is_absent() -> None:
    request = parse(PROMPT="a cat")
    assert (request.steps, request.guidance_scale, request.height, request.width) == (20, 5.0, 128, 64)
    assert request.negative_prompt is request.scheduler is request.request_id is request.deadline is None
    assert request.seed != parse(PROMPT="a cat").seed


def test_an_empty_negative_prompt_is_not_an_absent_one() -> None:
    assert parse(PROMPT="a cat", NEGATIVE_PROMPT="").negative_prompt == ""


def test_a_timeout_becomes_a_deadline() -> None:
    deadline = parse(PROMPT="a cat", TIMEOUT_MS=5000).deadline
    assert deadline is not None and 0 < deadline - time.monotonic() <= 5


@given(st.text(max_size=200), st.none() | st.text(max_size=50), st.integers(0, 2**63 - 1), st.integers(1, 200))
def test_json_carries_a_request_unchanged(prompt: str, negative: str | None, seed: int, steps: int) -> None:
    request = CompletedRequest("run", prompt, negative, seed, steps, 1.5, 64, 64, "ddim", "id", 1.25)
    assert CompletedRequest.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    "change", [{"steps": "x"}, {"steps": 0}, {"height": 10**8}, {"guidance_scale": None}, {"more": 1}, {"prompt": 3}]
)
def test_json_of_somebody_else_is_refused(change: dict[str, Any]) -> None:
    good = json.loads(parse(PROMPT="a cat").to_json())
    with pytest.raises(InvalidRequestError, match="REQUEST is not what `preprocess` writes"):
        CompletedRequest.from_json(json.dumps(good | change))
    with pytest.raises(InvalidRequestError, match="REQUEST is not what `preprocess` writes"):
        CompletedRequest.from_json("[" * 100_000)


INTEGER_LIMITS = {
    "SEED": (0, 2**63 - 1),
    "STEPS": (1, 200),
    "TIMEOUT_MS": (1, 3_600_000),
    "LORA_BOUND": (0, 200),
    "LORA_PATCH_STEP": (0, 400),
    "CLIP_SKIP": (0, 11),
}


@given(st.sampled_from(sorted(INTEGER_LIMITS)), st.data())
def test_integers_are_bounded(field: str, data: st.DataObject) -> None:
    bits = 63 if TYPES[field] == "INT64" else 31
    value = data.draw(st.integers(-(2**bits), 2**bits - 1))
    low, high = INTEGER_LIMITS[field]
    if low <= value <= high:
        parse(PROMPT="a cat", **{field: value})
        return
    with pytest.raises(InvalidRequestError) as caught:
        parse(PROMPT="a cat", **{field: value})
    assert str(caught.value) == f"{field} is {value}; allowed: {low} to {high}"


@given(st.floats(width=32))
def test_guidance_is_finite_and_bounded(value: float) -> None:
    if math.isfinite(value) and 0 <= value <= 50:
        assert parse(PROMPT="a cat", GUIDANCE_SCALE=value).guidance_scale == pytest.approx(value)
        return
    with pytest.raises(InvalidRequestError, match=r"GUIDANCE_SCALE is .*; allowed: 0 to 50"):
        parse(PROMPT="a cat", GUIDANCE_SCALE=value)


@given(st.floats(width=32))
def test_guidance_rescale_is_a_share(value: float) -> None:
    if 0 <= value <= 1:
        assert parse(PROMPT="a cat", GUIDANCE_RESCALE=value).guidance_rescale == pytest.approx(value)
        return
    with pytest.raises(InvalidRequestError, match=r"GUIDANCE_RESCALE is .*; allowed: 0 to 1"):
        parse(PROMPT="a cat", GUIDANCE_RESCALE=value)


@given(st.sampled_from(["HEIGHT", "WIDTH"]), st.integers(-(2**31), 2**31 - 1) | st.integers(0, 300))
def test_sizes_are_multiples_within_limits(field: str, value: int) -> None:
    if value in range(16, 257, 16):
        assert getattr(parse(PROMPT="a cat", **{field: value}), field.lower()) == value
        return
    with pytest.raises(InvalidRequestError, match=f"{field} is {value}; allowed: multiples of 16 from 16 to 256"):
        parse(PROMPT="a cat", **{field: value})


@given(st.binary(max_size=6000))
def test_any_bytes_as_prompt(raw: bytes) -> None:
    try:
        text = raw.decode()
        good = len(text) <= 4096 and "\0" not in text
    except UnicodeDecodeError:
        good = False
    if good:
        assert parse(PROMPT=raw).prompt == text
        return
    with pytest.raises(InvalidRequestError, match="PROMPT"):
        parse(PROMPT=raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.sampled_from(["LORAS", "CONTROLNETS"]),
    JSON.map(json.dumps).map(str.encode)
    | st.binary(max_size=64)
    | st.lists(st.fixed_dictionaries({"name": st.text(max_size=5)}, optional={"scale": JSON})).map(json.dumps),
)
def test_any_json_is_refused_by_name_or_empty(field: str, raw: bytes | str) -> None:
    """Nothing but an empty list is good while the catalogues are empty; nothing else than our error is raised."""
    try:
        parse(PROMPT="a cat", **{field: raw})
    except InvalidRequestError as error:
        assert field in str(error)
        assert len(str(error)) < 600
    else:
        assert json.loads(raw) == []


@pytest.mark.parametrize("field", ["LORAS", "CONTROLNETS"])
@pytest.mark.parametrize(
    "raw", ["[" * 16000, '[{"name":' * 1800, " " * 20000, "1e999", '[{"name": "x", "scale": 1e999}]']
)
def test_hostile_json_is_refused(field: str, raw: str) -> None:
    with pytest.raises(InvalidRequestError, match=field):
        parse(PROMPT="a cat", **{field: raw})


def test_the_sentence_shows_place_value_and_what_is_allowed() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(PROMPT="a cat", LORAS='[{"name": "a"}, {"name": "b", "scale": "big"}]')
    assert str(caught.value) == (
        'LORAS[1].scale is "big": Input should be a valid number; allowed: [{"name": "…", "scale": 1.0}]'
    )


def test_the_scheduler_is_one_that_the_checkpoint_allows() -> None:
    assert parse(PROMPT="a cat", SCHEDULER="euler_trailing").scheduler == "euler_trailing"
    edm = replace(RULES, own_scheduler="EDMEulerScheduler", schedulers=())
    names = ", ".join((*SCHEDULERS, "PNDMScheduler"))
    for rules, name, allowed in ((RULES, "plms", names), (edm, "euler", "EDMEuler")):
        with pytest.raises(InvalidRequestError, match=f'SCHEDULER is "{name}"; allowed by this checkpoint: {allowed}'):
            parse(rules, PROMPT="a cat", SCHEDULER=name)


def test_the_syntax_of_prompts_is_one_of_two() -> None:
    assert parse(PROMPT="a (cat:9)").max_chunks is parse(PROMPT="a (cat:9)", PROMPT_SYNTAX="plain").max_chunks is None
    assert parse(PROMPT="a (cat:2)", PROMPT_SYNTAX="weighted").max_chunks == RULES.max_prompt_chunks
    with pytest.raises(InvalidRequestError, match=r'^PROMPT_SYNTAX is "a1111"; allowed: plain, weighted$'):
        parse(PROMPT="a cat", PROMPT_SYNTAX="a1111")
    for field in ("PROMPT", "NEGATIVE_PROMPT"):
        fields = {"PROMPT": "a cat", field: "a (cat:9)", "PROMPT_SYNTAX": "weighted"}
        with pytest.raises(InvalidRequestError, match=f'^{field} gives "cat" the weight 9; allowed: -5 to 5$'):
            parse(**fields)


@pytest.mark.parametrize(
    ("scheduler", "evaluations"), [({}, 11), ({"SCHEDULER": "heun"}, 19), ({"SCHEDULER": "lcm"}, 10)]
)
def test_what_a_run_will_evaluate_is_known_before_it_begins(scheduler: dict[str, str], evaluations: int) -> None:
    assert parse(replace(RULES, own_more=1), PROMPT="x", STEPS=10, **scheduler).evaluations == evaluations


def test_the_checkpoints_own_scheduler_may_be_named_as_info_names_it() -> None:
    assert parse(PROMPT="a cat", SCHEDULER="PNDMScheduler").scheduler is None
