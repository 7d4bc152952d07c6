"""Forms of strangers: a typed request, or a sentence with a status that blames them."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from typing import Any

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from openai._base_client import FinalRequestOptions

from swiftdiffusion.clients.gateway.errors import ApiError
from swiftdiffusion.clients.gateway.forms import MOST_FILES, MOST_PARTS, read_form
from swiftdiffusion.clients.gateway.openai_edits import ImageEdit

FORM = "multipart/form-data; boundary=x"
FILE = b"\x89PNG \r\n--y \x00\xff"
"""No picture: that is not the form's to judge."""


def part(name: str, content: bytes | str, file_name: str | None = None) -> bytes:
    text = content.encode() if isinstance(content, str) else content
    named = "" if file_name is None else f'; filename="{file_name}"'
    return b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), named.encode(), text)


def form(*parts: bytes) -> bytes:
    """Of these parts, beside a prompt and a picture."""
    return b"".join([part("prompt", "a cat"), part("image", FILE, "x.png"), *parts]) + b"--x--\r\n"


def read(body: bytes, content_type: str | None = FORM, pieces: int = 1) -> ImageEdit:
    """As the route reads it."""
    step = max(1, -(-len(body) // pieces))
    chunks = [body[start : start + step] for start in range(0, len(body), step)] or [b""]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    headers = [] if content_type is None else [(b"content-type", content_type.encode("latin-1"))]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    return asyncio.run(read_form(request, ImageEdit))


def refusal(body: bytes, content_type: str | None = FORM) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(body, content_type)
    assert 0 < len(caught.value.message) < 1_200
    return caught.value


@pytest.mark.parametrize("pieces", [1, 7, 1_000])
def test_texts_files_numbers_and_lists(pieces: int) -> None:
    given = {
        "n": 2,
        "seed": 7,
        "strength": 0.5,
        "composite": True,
        "lora": [{"name": "night", "scale": 0.8}],
        "controlnet": {"name": "edges", "image": "…"},
    }
    asked = read(form(*(part(name, json.dumps(value)) for name, value in given.items())), pieces=pieces)
    assert (asked.prompt, asked.image, asked.mask, asked.n, asked.seed) == ("a cat", FILE, None, 2, 7)
    assert (asked.strength, asked.composite, asked.lora[0].scale) == (0.5, True, 0.8)
    assert asked.controlnet[0].name == "edges"


@pytest.mark.parametrize("text", ["7", "true", "null", '{"a": 1}', '"quoted"', "", "ä\r\n--\x00", "[" * 1_000])
def test_a_prompt_is_taken_as_it_stands(text: str) -> None:
    body = part("prompt", text) + part("image", FILE, "x.png") + b"--x--\r\n"
    assert read(body).prompt == text


@pytest.mark.parametrize(
    ("text", "names"),
    [("night", ["night"]), ('"night"', ["night"]), ('["night", "ink"]', ["night", "ink"]), ("my lora", ["my lora"])],
)
def test_loras_may_be_names(text: str, names: list[str]) -> None:
    assert [each.name for each in read(form(part("lora", text))).lora] == names


def test_a_list_may_come_in_parts() -> None:
    asked = read(form(part("lora[]", "night"), part("lora[]", '{"name": "ink", "scale": 2}'), part("lora", "fast")))
    assert [each.name for each in asked.lora] == ["night", "ink", "fast"]
    assert len(read(form(part("lora[]", "night"))).lora) == 1


def test_one_picture_may_come_in_brackets() -> None:
    """As OpenAI's client sends a list of one."""
    body = part("prompt", "a cat") + part("image[]", FILE, "x.png") + b"--x--\r\n"
    assert read(body).image == FILE


def test_a_field_for_a_file_where_none_was_chosen_is_absent() -> None:
    assert read(form(part("mask", b"", ""))).mask is None
    assert read(form(part("mask", b"", "empty.png"))).mask == b""


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        (form(part("image", FILE, "y.png")), "image", "image is there twice; allowed: once"),
        (form(part("image[]", FILE, "y.png")), "image", "image is there twice; allowed: once"),
        (form(part("prompt", "a dog")), "prompt", "prompt is there twice; allowed: once"),
        (part("prompt", "a cat") + b"--x--", "image", "image is missing"),
        (part("image", FILE, "x.png") + b"--x--", "prompt", "prompt is missing"),
        (
            part("prompt", "a") + part("image", "x.png") + b"--x--",
            "image",
            "image is 'x.png'; allowed: a file",
        ),
        (
            part("prompt", "a") + part("image", "ab" * 99) + b"--x--",
            "image",
            "image is str of 200 characters; allowed: a file",
        ),
        (part("prompt", FILE, "a.txt") + part("image", FILE, "x") + b"--x--", "prompt", "prompt is a file of 13 bytes"),
        (form(part("seed", FILE, "a.txt")), "seed", "seed is a file of 13 bytes; allowed: a whole number"),
        (form(part("n", "two")), "n", "n is 'two'; allowed: a whole number"),
        (form(part("n", "2.5")), "n", "n is 2.5; allowed: a whole number"),
        (form(part("n", "11")), "n", "n is 11; allowed: at most 10"),
        (form(part("n", "1" * 5_000)), "n", "n is str of 5002 characters; allowed: a whole number"),
        (form(part("strength", "NaN")), "strength", "strength is nan; allowed: "),
        (form(part("strength", "0")), "strength", "strength is 0; allowed: more than 0"),
        (form(part("composite", "True")), "composite", "composite is 'True'; allowed: true or false"),
        (form(part("composite", "1")), "composite", "composite is 1; allowed: true or false"),
        (form(part("strenght", "1")), "strenght", "strenght is no field of this route; allowed: prompt, "),
        (form(part("lora", "[7]")), "lora", "lora[0] is 7; allowed: an object"),
        (form(part("lora[name]", "x")), "lora", "lora[name] is a part of lora; allowed: lora whole, as JSON"),
        (form(part("lora[][name]", "x")), "lora", "lora[][name] is a part of lora; allowed: lora whole, as JSON"),
        (form(part("prompt\xe4", "x")), "promptä", "promptä is no field of this route"),
        (form(part("negative_prompt", b"\xff")), None, "negative_prompt is no UTF-8"),
        (form(part("", "x")), None, "a part of the form has no name"),
        (form(b"--x\r\nContent-Type: text/plain\r\n\r\nx\r\n"), None, "a part of the form has no name"),
        (form(part("x", "").replace(b'"x"', b'"\xff"')), None, "the name of a part is no UTF-8"),
        (form()[:-4], None, "the body is no form: it breaks off"),
        (b"", None, "the body is no form: it breaks off"),
        (b"{}", None, "the body is no form: "),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)  # fmt: skip
def test_the_first_mistake_is_named(body: bytes, param: str | None, said: str) -> None:
    error = refusal(body)
    assert error.message.startswith(said)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize(
    "content_type", [None, "", "application/json", "multipart/mixed; boundary=x", "x" * 10_000, "ÿ"]
)
def test_another_content_type_is_415(content_type: str | None) -> None:
    error = refusal(form(), content_type)
    assert error.status == 415
    assert error.message.endswith("; allowed: multipart/form-data")
    assert len(error.message) < 150


@pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary=" + "x" * 1_000, "; boundary=y"])
def test_a_boundary_that_is_none(boundary: str) -> None:
    assert refusal(form(), "multipart/form-data" + boundary).status == 400


def test_the_charset_of_a_form_is_not_asked() -> None:
    """Python has codecs that make a gigabyte of a kilobyte, or take hours."""
    body = form(part("negative_prompt", "ä"))
    assert read(body, FORM + "; charset=punycode").negative_prompt == "ä"


def peak_memory(body: bytes) -> int:
    tracemalloc.start()
    try:
        refusal(body)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (form(*[part("image", FILE, "x.png")] * 100_000), f"the form has more than {MOST_FILES} files; "),
        (form(*[part(f"f{number}", "") for number in range(100_000)]), f"the form has more than {MOST_PARTS} parts; "),
        (form(b"--x\r\n" + b"A: b\r\n" * 1_000_000), "the body is no form: "),
        (form(b"--x\r\nContent-Disposition: " + b"a" * 10_000_000), "the body is no form: "),
        (form(b"--x\r\n" * 1_000_000), "the body is no form: "),
        (form(b"\r\n-" * 3_000_000)[:-5], "the body is no form: "),
        (form(part("lora", "[" * 10_000_000)), "the body has more than 100000 commas and brackets"),
        (form(*[part("lora[]", "[" + "0," * 40_000 + "0]")] * 3), "the body has more than 100000 commas and brackets"),
        (form(part("lora", "[" + "0," * 40_000 + "0]")), "the body has more than 2000 values"),
    ],
    ids=["files", "parts", "headers", "a long header", "no header", "nearly the end", "depth", "three lists", "a list"],
)  # fmt: skip
def test_what_is_much_is_refused_soon_and_in_little_memory(body: bytes, said: str) -> None:
    began = time.process_time()
    assert refusal(body).message.startswith(said)
    assert time.process_time() - began < 3
    assert min(peak_memory(body) for _ in range(2)) < 2 * len(body) + 2**24


@pytest.mark.parametrize("depth", [150, 40_000])
def test_deep_nesting_is_400(depth: int) -> None:
    assert refusal(form(part("lora", "[" * depth + "]" * depth))).status == 400


def test_what_openai_s_client_sends_is_read() -> None:
    """Its own encoder, with the fields that it has and with those that it does not know."""
    sent: list[FinalRequestOptions] = []

    class Kept(OpenAI):
        def _request(self, *_args: Any, **_kwargs: Any) -> Any: ...

        def request(self, cast_to: Any, options: FinalRequestOptions, **_how: Any) -> Any:
            sent.append(options)

    client = Kept(base_url="http://127.0.0.1:1/v1", api_key="none")
    extra = {"seed": 7, "strength": 0.5, "composite": True, "lora": ["night", "ink"], "timeout_ms": None}
    client.images.edit(
        image=[b"old"], mask=b"hole", prompt="a cat", n=2, size="64x64", output_format="webp", extra_body=extra
    )
    request = client._build_request(sent[0])
    asked = read(request.read(), request.headers["content-type"])
    assert (asked.image, asked.mask, asked.prompt, asked.n, asked.size) == (b"old", b"hole", "a cat", 2, "64x64")
    assert (asked.seed, asked.strength, asked.composite, asked.timeout_ms) == (7, 0.5, True, None)
    assert [each.name for each in asked.lora] == ["night", "ink"]


NAMES = st.sampled_from([*ImageEdit.model_fields, "image[]", "lora[]", "x", "lora[a]"]) | st.text(max_size=8)
TEXTS = st.binary(max_size=30) | st.sampled_from([b"1", b"null", b"[1]", b'{"name": "a"}', b'"\\ud800"', b"1e999"])
PARTS = st.builds(part, NAMES.map(lambda name: name.replace('"', "")), TEXTS, st.none() | st.just("f"))


@given(st.lists(PARTS, max_size=5), st.integers(0, 40), st.binary(max_size=3))
def test_any_form_is_a_request_or_a_refusal(parts: list[bytes], cut: int, between: bytes) -> None:
    body = form(*parts)
    for each in (body, body[: len(body) - cut], body[:cut] + between + body[cut:]):
        try:
            assert read(each).prompt is not None
        except ApiError as error:
            assert error.status == 400
            assert 0 < len(error.message) < 1_200
            json.dumps(error.body("/v1/")).encode()


@given(st.binary(max_size=80))
def test_any_bytes_are_a_refusal(body: bytes) -> None:
    assert refusal(body).status == 400
