"""Pictures as files, and what is seen of them on the way."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from PIL import Image

import wire
from swiftdiffusion.clients import Client, GenerationRequest, GenerationResult, InvalidRequest, Progress
from swiftdiffusion.python_backends.launcher import TritonServer

FIELDS: dict[str, Any] = {"PROMPT": wire.PROMPT, "SEED": 7, "STEPS": 6, "GUIDANCE_SCALE": 1.0}
"""Of one row: rounding depends on which rows a shard evaluates together."""
REQUEST = GenerationRequest(wire.PROMPT, seed=7, steps=100, guidance_scale=1.0)


def infer(server: TritonServer, protocol: str = "grpc", **fields: Any) -> dict[str, Any]:
    """Every output: IMAGE [H, W, 3], ENCODED_IMAGE as bytes, INFO as JSON values; None for absent ones."""
    module = {"grpc": grpc, "http": http}[protocol]
    address = {"grpc": server.grpc_url, "http": server.http_url}[protocol].split("://")[-1]
    with module.InferenceServerClient(address) as client:
        result = client.infer("sdxl", wire.inputs(module, FIELDS | fields))
    image, encoded, info = (result.as_numpy(name) for name in ("IMAGE", "ENCODED_IMAGE", "INFO"))
    return {
        "IMAGE": None if image is None else image[0],
        "ENCODED_IMAGE": None if encoded is None else encoded[0, 0],
        "INFO": json.loads(info[0, 0]),
    }


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def distance(first: Any, second: Any) -> float:
    """Mean absolute difference of pictures in units of 1/255."""
    return float(np.abs(np.asarray(first, np.float64) - np.asarray(second)).mean())


LOSSLESS: dict[str, dict[str, Any]] = {
    "png": {"OUTPUT_FORMAT": "png"},
    "webp": {"OUTPUT_FORMAT": "webp", "OUTPUT_QUALITY": 100},
}


@pytest.mark.parametrize("suffix", ["", ";base64"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_file_holds_the_raw_picture(server: TritonServer, name: str, protocol: str, suffix: str) -> None:
    raw = infer(server, protocol)
    assert raw["ENCODED_IMAGE"] is None
    assert "output_format" not in raw["INFO"]
    fields = LOSSLESS[name] | {"OUTPUT_FORMAT": name + suffix}
    found = infer(server, protocol, **fields)
    assert found["IMAGE"] is None
    assert found["INFO"]["output_format"] == name
    content = found["ENCODED_IMAGE"]
    picture = opened(base64.b64decode(content, validate=True) if suffix else content)
    assert picture.format == name.upper()
    assert np.array_equal(np.asarray(picture), raw["IMAGE"])


@pytest.mark.parametrize("name", LOSSLESS)
def test_json_alone_brings_a_file(server: TritonServer, name: str) -> None:
    body = FIELDS | LOSSLESS[name] | {"OUTPUT_FORMAT": f"{name};base64"}
    status, answer = wire.post(server, "v2/models/sdxl/generate", body)
    assert status == 200
    assert "IMAGE" not in answer
    picture = opened(base64.b64decode(answer["ENCODED_IMAGE"], validate=True))
    assert np.array_equal(np.asarray(picture), infer(server)["IMAGE"])


@pytest.mark.parametrize(("name", "qualities"), [("jpeg", (None, 95)), ("webp", (None, 95))])
def test_jpeg_and_webp_differ_little(server: TritonServer, name: str, qualities: tuple[int | None, ...]) -> None:
    raw = infer(server)["IMAGE"]
    for quality in qualities:
        given = {} if quality is None else {"OUTPUT_QUALITY": quality}
        picture = opened(infer(server, OUTPUT_FORMAT=name, **given)["ENCODED_IMAGE"])
        assert (picture.format, picture.size) == (name.upper(), (128, 128))
        assert 0 < distance(picture, raw) < 3
    assert distance(opened(infer(server, OUTPUT_FORMAT=name, OUTPUT_QUALITY=5)["ENCODED_IMAGE"]), raw) > 3


def test_a_png_says_what_it_was_made_of(server: TritonServer) -> None:
    fields = {"NEGATIVE_PROMPT": "blurry\nugly", "SCHEDULER": "dpmpp_2m_karras", "LORAS": '[{"name": "night"}]'}
    found = infer(server, OUTPUT_FORMAT="png", PROMPT="ein grüner Stern", **fields)
    texts = opened(found["ENCODED_IMAGE"]).text
    assert set(texts) == {"swiftdiffusion", "parameters"}
    assert found["INFO"]["timings_ms"].pop("encoding") > 0
    assert json.loads(texts["swiftdiffusion"]) == found["INFO"]
    assert texts["parameters"] == (
        "ein grüner Stern <lora:night:1>\nNegative prompt: blurry\nugly\n"
        "Steps: 6, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 1, Seed: 7, Size: 128x128, Model: sdxl"
    )


def test_a_png_says_nothing_where_that_is_not_wanted(server: TritonServer) -> None:
    found = infer(server, OUTPUT_FORMAT="png", OUTPUT_METADATA=False)
    assert opened(found["ENCODED_IMAGE"]).text == {}
    status, answer = wire.post(
        server, "v2/models/sdxl/generate", FIELDS | {"OUTPUT_FORMAT": "png;base64", "OUTPUT_METADATA": False}
    )
    assert status == 200
    assert base64.b64decode(answer["ENCODED_IMAGE"]) == found["ENCODED_IMAGE"]


@pytest.mark.parametrize("name", ["png", "png;base64", "webp", "jpeg;base64"])
def test_the_client_opens_whatever_file_it_asked_for(url: str, name: str) -> None:
    request = GenerationRequest(wire.PROMPT, seed=7, steps=3, guidance_scale=1.0)
    with Client(url) as client:
        raw = client.generate(request)
        found = client.generate(GenerationRequest(**vars(request) | {"output_format": name}))
    assert raw.encoded is None
    assert found.raw is None
    assert found.encoded is not None
    assert found.image.format == name.partition(";")[0].upper() == opened(found.encoded).format
    assert found.pixels.shape == raw.pixels.shape
    assert distance(found.pixels, raw.pixels) <= (0 if name.startswith("png") else 3)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"output_format": "gif"}, 'OUTPUT_FORMAT is "gif"; allowed: raw, png, '),
    "quality": ({"output_format": "png", "output_quality": 9}, "OUTPUT_QUALITY is 9; allowed: only where"),
    "metadata": ({"output_metadata": True}, "OUTPUT_METADATA is true; allowed: only where"),
    "size": ({"previews": 1, "preview_size": 8}, "PREVIEW_SIZE is 8; allowed: 16 to 1024"),
    "decoder": ({"previews": 1, "preview_decoder": "x"}, 'PREVIEW_DECODER is "x"; allowed: linear, vae'),
    "previews": ({"previews": 500}, "PREVIEWS is 500; allowed: 0 to 200"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_an_invalid_request(url: str, case: str) -> None:
    values, sentence = REFUSED[case]
    request = GenerationRequest(wire.PROMPT, **values)
    with Client(url) as client:
        with pytest.raises(InvalidRequest, match=sentence):
            client.generate(request)
        if url.startswith("grpc"):
            with pytest.raises(InvalidRequest, match=sentence):
                list(client.stream(request))


def test_there_are_no_previews_without_a_stream(url: str) -> None:
    with (
        Client(url) as client,
        pytest.raises(InvalidRequest, match="PREVIEWS is 2; allowed: 0, or the model sdxl_stream"),
    ):
        client.generate(GenerationRequest(wire.PROMPT, previews=2))


def streamed(server: TritonServer, **values: Any) -> tuple[dict[int, bytes | None], GenerationResult]:
    """Step → preview, and the picture."""
    with Client(server.grpc_url) as client:
        *progress, result = client.stream(GenerationRequest(**vars(REQUEST) | values))
    assert isinstance(result, GenerationResult)
    told = [(event.step, event.preview) for event in progress if isinstance(event, Progress)]
    assert [step for step, _ in told] == list(range(1, 100))  # each once
    return dict(told), result


@pytest.mark.parametrize("decoder", ["linear", "vae"])
@pytest.mark.parametrize(
    ("values", "name", "size"),
    [
        ({"previews": 15}, "JPEG", (128, 128)),
        ({"previews": 20, "preview_size": 32, "output_format": "webp;base64", "height": 64}, "WEBP", (32, 16)),
        ({"previews": 5, "preview_size": 1024, "output_format": "png", "width": 64}, "PNG", (64, 128)),
    ],
)
def test_previews_come_at_their_steps_and_change_nothing(
    server: TritonServer, decoder: str, values: dict[str, Any], name: str, size: tuple[int, int]
) -> None:
    """A machine with other things to do may show some steps too late for theirs, and never another's."""
    previews, result = streamed(server, preview_decoder=decoder, **values)
    shown = {step: content for step, content in previews.items() if content is not None}
    assert shown
    assert all(step % values["previews"] == 0 for step in shown)
    for content in shown.values():
        picture = opened(content)
        assert (picture.format, picture.mode, picture.size) == (name, "RGB", size)
        assert getattr(picture, "text", {}) == {}
    unseen = {key: value for key, value in values.items() if not key.startswith("preview")}
    alone, without = streamed(server, **unseen)
    assert set(alone.values()) == {None}
    assert np.array_equal(result.pixels, without.pixels)
    last = opened(shown[max(shown)])
    assert distance(last, result.image.resize(size, Image.Resampling.BICUBIC)) < 40


def test_zero_previews_are_none(server: TritonServer) -> None:
    previews, _ = streamed(server, previews=0)
    assert set(previews.values()) == {None}
