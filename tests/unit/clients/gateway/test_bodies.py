"""JSON of strangers: a typed request, or a sentence with a status that blames them."""

from __future__ import annotations

import asyncio
import json
import re
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.clients.gateway.bodies import read_body
from swiftdiffusion.clients.gateway.errors import ApiError
from swiftdiffusion.clients.gateway.openai_fields import ImageGeneration

JSON = "application/json"


def read(body: Any, content_type: str | None = JSON) -> ImageGeneration:
    """As a route reads it; what are no bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    headers = [] if content_type is None else [(b"content-type", content_type.encode("latin-1"))]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    return asyncio.run(read_body(request, ImageGeneration))


def refusal(body: Any, content_type: str | None = JSON) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(body, content_type)
    return caught.value


@pytest.mark.parametrize("content_type", [JSON, "Application/JSON", "application/json; charset=utf-8"])
def test_json_is_read(content_type: str) -> None:
    assert read({"prompt": "a cat", "n": 2, "guidance_scale": 5}, content_type).n == 2


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "x" * 10_000, "ÿ"],
)
def test_another_content_type_is_415(content_type: str | None) -> None:
    """Browsers send those from any page without asking first."""
    error = refusal({"prompt": "a cat"}, content_type)
    assert error.status == 415
    assert error.message.endswith("; allowed: application/json")
    assert len(error.message) < 150


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"prompt=a",
        b"\xff\xfe{}",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b'{"n": 1' + b"0" * 10_000 + b"}",
        b"{} {}",
        b"\x00",
    ],
)
def test_what_is_no_json_is_400(body: bytes) -> None:
    error = refusal(body)
    assert error.status == 400
    assert error.message.startswith("the body is no JSON: ")
    assert len(error.message) < 250


@pytest.mark.parametrize("body", [[], [{"prompt": "a cat"}], "a cat", 3, None, True])
def test_other_json_than_an_object_is_400(body: Any) -> None:
    assert (refusal(body).status, refusal(body).message) == (400, "the body is no JSON object")


def keys(count: int) -> bytes:
    return b"{" + b",".join(b'"k%d":0' % number for number in range(count)) + b"}"


def entries(count: int) -> bytes:
    return b'{"prompt":"a","lora":[' + b",".join([b"{}"] * count) + b"]}"


def levels(count: int) -> bytes:
    return b'{"prompt":"a","lora":[' + b",".join([b"[" * 100 + b"]" * 100] * (count // 100)) + b"]}"


@pytest.mark.parametrize("make", [keys, entries, levels])
@pytest.mark.parametrize(("count", "most_memory"), [(2_100, 2**21), (40_000, 2**24), (1_000_000, 2**16)])
def test_many_values_are_refused_soon_and_in_little_memory(
    make: Callable[[int], bytes], count: int, most_memory: int
) -> None:
    body = make(count)
    began = time.process_time()
    error = refusal(body)
    assert time.process_time() - began < 2
    assert error.status == 400
    assert re.fullmatch(
        r"the body has more than 2000 values; .*|the body has more than 100000 commas .*", error.message
    )
    assert min(peak_memory(lambda: refusal(body)) for _ in range(3)) < len(body) + most_memory  # other threads go on


def peak_memory(do: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_long_prompts_may_have_commas() -> None:
    prompt = "a, [b], {c}; " * 10_000
    assert read({"prompt": prompt}).prompt == prompt


@pytest.mark.parametrize("depth", [100, 150, 1_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_400(depth: int, opening: bytes, closing: bytes) -> None:
    error = refusal(b'{"prompt":' + opening * depth + b"1" + closing * depth + b"}")
    assert error.status == 400
    assert len(error.message) < 250


@pytest.mark.parametrize(
    ("values", "param", "said"),
    [
        ({}, "prompt", "prompt is missing"),
        ({"promt": "a", "prompt": "a"}, "promt", "promt is no field of this route; allowed: prompt, model, n, "),
        ({"prompt": "a", "x" * 10_000: 1}, "x" * 80, f"{'x' * 80} is no field of this route; allowed: prompt, "),
        ({"prompt": 3}, "prompt", "prompt is 3; allowed: a text"),
        ({"prompt": ["a" * 100]}, "prompt", "prompt is a list of 1; allowed: a text"),
        ({"prompt": "a", "n": "2"}, "n", "n is '2'; allowed: a whole number"),
        ({"prompt": "a", "n": 2.0}, "n", "n is 2.0; allowed: a whole number"),
        ({"prompt": "a", "n": True}, "n", "n is true; allowed: a whole number"),
        ({"prompt": "a", "n": 10**4000}, "n", "n is int of 4001 characters; allowed: at most 10"),
        ({"prompt": "a", "stream": 1}, "stream", "stream is 1; allowed: true or false"),
        ({"prompt": "a", "guidance_scale": "5"}, "guidance_scale", "guidance_scale is '5'; allowed: a number"),
        ({"prompt": "a", "guidance_scale": True}, "guidance_scale", "guidance_scale is true; allowed: a number"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale", "guidance_scale is nan; allowed: a number"),
        (
            {"prompt": "a", "guidance_scale": 10**400},
            "guidance_scale",
            "guidance_scale is int of 401 characters; allowed: a number",
        ),
        ({"prompt": "a", "lora": 7}, "lora", "lora[0] is 7; allowed: an object"),
        ({"prompt": "a", "lora": [{"name": "x"}, 7]}, "lora", "lora[1] is 7; allowed: an object"),
        ({"prompt": "a", "lora": {"name": ""}}, "lora", "lora[0].name is ''; allowed: a length of at least 1"),
        (
            {"prompt": "a", "lora": {"nmae": "x", "name": "x"}},
            "lora",
            "lora[0].nmae is no field of this route; allowed: name, scale, patch_step; the nearest: name",
        ),
        ({"prompt": "a", "lora": [{"scale": 1.0}]}, "lora", "lora[0].name is missing"),
        (
            {"prompt": "a", "lora": [{"name": "x"}] * 65},
            "lora",
            "lora is a list of 65; allowed: a length of at most 64",
        ),
        ({"prompt": "a", "controlnet": [{"name": "edges"}]}, "controlnet", "controlnet[0].image is missing"),
        ({"prompt": "a", "quality": "hd"}, "quality", "quality is 'hd'; allowed: 'auto' or 'standard'"),
        ({"prompt": "a", "size": "big"}, "size", "size: 'big' is no size; allowed: WIDTHxHEIGHT, auto"),
    ],
)
def test_the_first_mistake_is_named(values: dict[str, Any], param: str, said: str) -> None:
    error = refusal(values)
    assert (error.status, error.kind, error.param) == (400, "invalid_request_error", param)
    assert error.message.startswith(said)
    assert len(error.message) < 1_000


@pytest.mark.parametrize(
    ("given", "nearest"), [("steps", "num_inference_steps"), ("loras", "lora"), ("sede", "seed"), ("width", "size")]
)
def test_what_other_apis_call_a_field_is_told_the_nearest(given: str, nearest: str) -> None:
    assert refusal({"prompt": "a", given: 1}).message.endswith(f"; the nearest: {nearest}")


def test_a_lora_may_be_its_name() -> None:
    whole = read({"prompt": "a", "lora": [{"name": "night"}]})
    assert read({"prompt": "a", "lora": "night"}) == read({"prompt": "a", "lora": ["night"]}) == whole


def test_what_is_null_is_absent() -> None:
    names = [name for name in ImageGeneration.model_fields if name != "prompt"]
    assert read({"prompt": "a", **dict.fromkeys(names)}) == read({"prompt": "a"})
    assert refusal({"prompt": None}).message == "prompt is missing"


def test_long_texts_are_not_repeated() -> None:
    picture = "cGljdHVyZQ==" * 10_000
    for values in ({"prompt": [picture]}, {"prompt": "a", "size": picture}, {"prompt": "a", "model": picture}):
        assert len(refusal(values).message) < 200


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from([*ImageGeneration.model_fields, "name", "image", "scale", "x"])


@given(st.dictionaries(FIELDS, VALUES | st.dictionaries(FIELDS, VALUES, max_size=3), max_size=6) | VALUES)
def test_any_json_is_a_request_or_a_refusal(values: Any) -> None:
    body = json.dumps(values).encode()
    try:
        assert isinstance(read(body), ImageGeneration)
    except ApiError as error:
        assert error.status == 400
        assert 0 < len(error.message) < 1_000
        json.dumps(error.body("/v1/")).encode()


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_refusal(body: bytes) -> None:
    assert refusal(body).status == 400
