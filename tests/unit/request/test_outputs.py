"""How a request wants its picture: what is given, what is left out, and what has no meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.lora.loading.catalogue import Catalogue
from swiftdiffusion.python_backends.request.completed import CompletedRequest
from swiftdiffusion.python_backends.request.outputs import FORMATS, FileOutput, Previews
from swiftdiffusion.python_backends.request.parsing import parse_request
from swiftdiffusion.python_backends.request.rules import RequestRules
from wire import array

RULES = RequestRules(
    steps=20, guidance_scale=5.0, height=128, width=64, size_multiple=8, max_size=256, own_scheduler="DDIMScheduler"
)
JPEG = FileOutput("jpeg", 90)
NAMES = ("raw", *FORMATS, *(f"{name};base64" for name in FORMATS))


def parse(**fields: Any) -> CompletedRequest:
    arrays = {name: array(name, value) for name, value in ({"PROMPT": "a cat"} | fields).items()}
    return parse_request({name: tensor[0] for name, tensor in arrays.items()}, RULES, Catalogue(None))


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({}, None),
        ({"OUTPUT_FORMAT": "raw"}, None),
        ({"OUTPUT_METADATA": False}, None),
        ({"OUTPUT_FORMAT": "png"}, FileOutput("png", 100, metadata=True)),
        ({"OUTPUT_FORMAT": "png", "OUTPUT_METADATA": True}, FileOutput("png", 100, metadata=True)),
        ({"OUTPUT_FORMAT": "png", "OUTPUT_METADATA": False}, FileOutput("png", 100)),
        ({"OUTPUT_FORMAT": "png;base64"}, FileOutput("png", 100, base64=True, metadata=True)),
        ({"OUTPUT_FORMAT": "webp"}, FileOutput("webp", 90)),
        ({"OUTPUT_FORMAT": "webp", "OUTPUT_QUALITY": 100}, FileOutput("webp", 100)),
        ({"OUTPUT_FORMAT": "webp;base64", "OUTPUT_QUALITY": 1}, FileOutput("webp", 1, base64=True)),
        ({"OUTPUT_FORMAT": "jpeg", "OUTPUT_METADATA": False}, JPEG),
        ({"OUTPUT_FORMAT": "jpeg;base64", "OUTPUT_QUALITY": 40}, FileOutput("jpeg", 40, base64=True)),
    ],
)
def test_a_picture_is_raw_or_a_file(fields: dict[str, Any], output: FileOutput | None) -> None:
    assert parse(**fields).output == output


@pytest.mark.parametrize(
    ("fields", "previews"),
    [
        ({}, None),
        ({"PREVIEWS": 0}, None),
        ({"PREVIEWS": 5}, Previews(5, 256, "linear", JPEG)),
        ({"PREVIEWS": 200, "PREVIEW_SIZE": 16, "PREVIEW_DECODER": "vae"}, Previews(200, 16, "vae", JPEG)),
        ({"PREVIEWS": 1, "PREVIEW_SIZE": 1024, "PREVIEW_DECODER": "linear"}, Previews(1, 1024, "linear", JPEG)),
        (
            {"PREVIEWS": 1, "OUTPUT_FORMAT": "webp;base64", "OUTPUT_QUALITY": 7},
            Previews(1, 256, "linear", FileOutput("webp", 7, base64=True)),
        ),
        ({"PREVIEWS": 1, "OUTPUT_FORMAT": "png"}, Previews(1, 256, "linear", FileOutput("png", 100))),
    ],
)
def test_previews_have_the_format_of_the_picture_and_jpeg_where_that_is_raw(
    fields: dict[str, Any], previews: Previews | None
) -> None:
    assert parse(**fields).previews == previews


ALLOWED = "raw, png, webp, jpeg, png;base64, webp;base64, jpeg;base64"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"OUTPUT_FORMAT": "gif"}, f'OUTPUT_FORMAT is "gif"; allowed: {ALLOWED}'),
        ({"OUTPUT_FORMAT": ""}, f'OUTPUT_FORMAT is ""; allowed: {ALLOWED}'),
        ({"OUTPUT_FORMAT": "PNG"}, f'OUTPUT_FORMAT is "PNG"; allowed: {ALLOWED}'),
        ({"OUTPUT_FORMAT": "raw;base64"}, f'OUTPUT_FORMAT is "raw;base64"; allowed: {ALLOWED}'),
        ({"OUTPUT_FORMAT": "png;base64;base64"}, f'OUTPUT_FORMAT is "png;base64;base64"; allowed: {ALLOWED}'),
        ({"OUTPUT_FORMAT": "webp", "OUTPUT_QUALITY": 0}, "OUTPUT_QUALITY is 0; allowed: 1 to 100"),
        ({"OUTPUT_FORMAT": "jpeg", "OUTPUT_QUALITY": 101}, "OUTPUT_QUALITY is 101; allowed: 1 to 100"),
        (
            {"OUTPUT_FORMAT": "png", "OUTPUT_QUALITY": 90},
            "OUTPUT_QUALITY is 90; allowed: only where OUTPUT_FORMAT is webp or jpeg",
        ),
        ({"OUTPUT_QUALITY": 90}, "OUTPUT_QUALITY is 90; allowed: only where OUTPUT_FORMAT is webp or jpeg"),
        (
            {"OUTPUT_FORMAT": "webp", "OUTPUT_METADATA": True},
            "OUTPUT_METADATA is true; allowed: only where OUTPUT_FORMAT is png",
        ),
        ({"OUTPUT_METADATA": True}, "OUTPUT_METADATA is true; allowed: only where OUTPUT_FORMAT is png"),
        ({"PREVIEWS": -1}, "PREVIEWS is -1; allowed: 0 to 200"),
        ({"PREVIEWS": 201}, "PREVIEWS is 201; allowed: 0 to 200"),
        ({"PREVIEWS": 1, "PREVIEW_SIZE": 15}, "PREVIEW_SIZE is 15; allowed: 16 to 1024"),
        ({"PREVIEWS": 1, "PREVIEW_SIZE": 1025}, "PREVIEW_SIZE is 1025; allowed: 16 to 1024"),
        ({"PREVIEW_SIZE": 64}, "PREVIEW_SIZE is 64; allowed: only where PREVIEWS is at least 1"),
        ({"PREVIEWS": 1, "PREVIEW_DECODER": "taesd"}, 'PREVIEW_DECODER is "taesd"; allowed: linear, vae'),
        (
            {"PREVIEWS": 0, "PREVIEW_DECODER": "vae"},
            'PREVIEW_DECODER is "vae"; allowed: only where PREVIEWS is at least 1',
        ),
    ],
)
def test_what_has_no_meaning_is_refused_with_what_is_allowed(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**fields)
    assert str(caught.value) == sentence


@given(
    st.text(max_size=70)
    | st.sampled_from(NAMES)
    | st.lists(st.sampled_from((*NAMES, ";", ";base64", " ", "JPEG"))).map("".join)
)
def test_any_text_is_a_known_format_or_refused_by_name(text: str) -> None:
    try:
        output = parse(OUTPUT_FORMAT=text).output
    except InvalidRequestError as error:
        assert text not in NAMES
        assert str(error).startswith("OUTPUT_FORMAT ")
        assert len(str(error)) < 400
    else:
        told = "raw" if output is None else output.format + (";base64" if output.base64 else "")
        assert told == text


@given(
    st.sampled_from(NAMES),
    st.integers(1, 100),
    st.booleans(),
    st.integers(0, 200),
    st.integers(16, 1024),
    st.sampled_from(["linear", "vae"]),
)
def test_json_carries_what_was_asked_for(
    name: str, quality: int, metadata: bool, previews: int, size: int, decoder: str
) -> None:
    fields: dict[str, Any] = {"OUTPUT_FORMAT": name, "PREVIEWS": previews}
    if name.startswith(("webp", "jpeg")):
        fields["OUTPUT_QUALITY"] = quality
    if name.startswith("png"):
        fields["OUTPUT_METADATA"] = metadata
    if previews:
        fields |= {"PREVIEW_SIZE": size, "PREVIEW_DECODER": decoder}
    request = parse(**fields)
    assert CompletedRequest.from_json(request.to_json()) == request


def test_previews_come_after_every_so_many_steps() -> None:
    assert [step for step in range(8) if Previews(3, 64, "vae", JPEG).shows(step)] == [3, 6]


def test_one_value_a_field() -> None:
    arrays = {"PROMPT": array("PROMPT", "a cat")[0], "OUTPUT_METADATA": np.array([True, False])}
    with pytest.raises(InvalidRequestError, match="OUTPUT_METADATA has 2 values; allowed: one"):
        parse_request(arrays, RULES, Catalogue(None))
