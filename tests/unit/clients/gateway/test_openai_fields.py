"""What a body of OpenAI's route asks of the server."""

from __future__ import annotations

import asyncio
import base64
import io
import resource
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from swiftdiffusion.clients.client.pipelines import PipelineDescription
from swiftdiffusion.clients.client.request import ControlNet, GenerationRequest, Lora
from swiftdiffusion.clients.gateway.errors import ApiError
from swiftdiffusion.clients.gateway.openai_fields import ImageGeneration

PIPELINE = PipelineDescription.model_validate(
    {
        "height": 128,
        "width": 192,
        "size_multiple": 8,
        "max_size": 256,
        "steps": 20,
        "max_steps": 100,
        "guidance_scale": 5.0,
        "max_guidance_scale": 30.0,
        "max_prompt_characters": 1000,
        "scheduler": "EulerDiscreteScheduler",
        "schedulers": [],
        "max_loras": 8,
        "loras": [{"name": "night"}, {"name": "fast", "steps": 4}, {"name": "faster", "steps": 2}],
        "max_controlnets": 2,
        "controlnets": [{"name": "edges"}, {"name": "depth"}],
    }
)


def body(**values: Any) -> ImageGeneration:
    return ImageGeneration.model_validate({"prompt": "a cat", **values})


def request(**values: Any) -> GenerationRequest:
    return asyncio.run(body(**values).request(PIPELINE, 4096 * 4096, "mine"))


def picture(width: int = 16, height: int = 16, colour: str = "red") -> str:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def refusal(**values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        body(**values)
    first = caught.value.errors()[0]
    return f"{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}"


def test_what_is_absent_is_left_to_the_server() -> None:
    assert request() == GenerationRequest("a cat", request_id="mine", output_format="png")


def test_openai_s_own_fields_that_mean_nothing_here_are_taken() -> None:
    values = {"quality": "standard", "background": "opaque", "moderation": "low", "user": "u", "safety_identifier": "s"}
    assert request(**values, n=10, size="auto", response_format="url") == request()


def test_every_field_reaches_its_input() -> None:
    given = {
        "negative_prompt": "dogs",
        "seed": 2**63 - 11,
        "guidance_scale": 5,
        "guidance_rescale": 0.5,
        "scheduler": "euler",
        "clip_skip": 1,
        "prompt_syntax": "weighted",
        "lora_bound": 0,
        "priority": "low",
        "timeout_ms": 3_600_000,
        "output_format": "webp",
        "output_metadata": False,
    }
    asked = request(**given, num_inference_steps=7, size="64x96")
    assert asked == GenerationRequest("a cat", request_id="mine", steps=7, width=64, height=96, **given)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"n": 0}, "n: "),
        ({"n": 11}, "n: "),
        ({"n": 2, "stream": True}, "stream: n is 2; allowed in a stream: 1"),
        ({"response_format": "url", "stream": True}, "stream: response_format is url; allowed in a stream: b64_json"),
        ({"partial_images": 1}, "partial_images: 1 is given; allowed: only where stream is true"),
        ({"partial_images": 4, "stream": True}, "partial_images: "),
        ({"partial_images": -1, "stream": True}, "partial_images: "),
        ({"progress": True}, "progress: True is given; allowed: only where stream is true"),
        ({"preview_every": 2, "stream": False}, "preview_every: 2 is given; allowed: only where stream is true"),
        ({"preview_every": 401, "stream": True}, "preview_every: "),
        ({"size": ""}, "size: '' is no size; allowed: WIDTHxHEIGHT, auto"),
        ({"size": "128"}, "size: '128' is no size"),
        ({"size": "128X128"}, "size: '128X128' is no size"),
        ({"size": "-64x64"}, "size: '-64x64' is no size"),
        ({"size": "64x64\n"}, "size: '64x64\\n' is no size"),
        ({"size": "100000x64"}, "size: '100000x64' is no size"),
        ({"size": "1024x1024;rm -rf /"}, "size: String should have at most 16"),
        ({"quality": "hd"}, "quality: "),
        ({"background": "transparent"}, "background: "),
        ({"moderation": "high"}, "moderation: "),
        ({"output_format": "raw"}, "output_format: "),
        ({"output_format": "PNG"}, "output_format: "),
        ({"output_compression": -1}, "output_compression: "),
        ({"output_compression": 101}, "output_compression: "),
        ({"response_format": "b64"}, "response_format: "),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**63 - 10}, "seed: "),
        ({"timeout_ms": 0}, "timeout_ms: "),
        ({"timeout_ms": 3_600_001}, "timeout_ms: "),
        ({"model": "x" * 257}, "model: "),
        ({"user": "x" * 513}, "user: "),
        ({"lora": {"name": "x" * 129}}, "lora: "),
        ({"lora": {"name": "x", "scale": float("inf")}}, "lora: "),
        ({"lora": {"name": "x", "patch_step": 1.5}}, "lora: "),
        ({"controlnet": [{"name": "x", "image": ""}] * 17}, "controlnet: "),
        ({"controlnet": {"name": "x", "image": "", "stale": True}}, "controlnet: Extra inputs"),
        ({"style": "vivid"}, "style: Extra inputs"),
        ({"request_id": "x"}, "request_id: Extra inputs"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(values: dict[str, Any], said: str) -> None:
    assert refusal(**values).startswith(said)


@pytest.mark.parametrize(
    "values",
    [
        {"n": 1, "stream": True},
        {"n": 10, "stream": False, "response_format": "url"},
        {"stream": True, "response_format": "b64_json", "partial_images": 3, "progress": True, "preview_every": 400},
        {"stream": False, "partial_images": 0, "progress": False, "preview_every": 0},
    ],
)
def test_what_goes_together_is_taken(values: dict[str, Any]) -> None:
    assert body(**values).stream == values["stream"]


@pytest.mark.parametrize(
    ("model", "pipeline", "loras"),
    [
        (None, None, ()),
        ("sdxl", "sdxl", ()),
        ("sdxl:", "sdxl", ()),
        ("sdxl:night", "sdxl", (Lora("night"),)),
        ("sdxl:a:b", "sdxl", (Lora("a:b"),)),
        ("", "", ()),
        (":night", "", (Lora("night"),)),
    ],
)
def test_a_model_is_a_pipeline_or_one_with_a_lora(model: str | None, pipeline: str | None, loras: Any) -> None:
    assert body(model=model).pipeline == pipeline
    assert request(model=model).loras == loras


def test_loras_are_one_or_several_after_the_model_s() -> None:
    assert request(lora={"name": "night", "scale": 1}).loras == (Lora("night", 1.0),)
    several = [{"name": "ink", "scale": 0.5, "patch_step": 3}, {"name": "fast", "scale": None}]
    assert request(model="sdxl:night", lora=several).loras == (Lora("night"), Lora("ink", 0.5, 3), Lora("fast"))
    assert request(lora=[]).loras == ()


def test_controlnets_come_with_their_pictures() -> None:
    first = {"name": "edges", "image": picture(), "scale": 0.5, "start": 0, "end": 0.8, "guess_mode": True}
    asked = request(controlnet=[first, {"name": "union", "image": picture(colour="blue"), "control_mode": 2}])
    assert asked.controlnets == (ControlNet("edges", 0.5, 0.0, 0.8, True), ControlNet("union", control_mode=2))
    assert [tuple(np.asarray(each)[0, 0]) for each in asked.control_images] == [(255, 0, 0), (0, 0, 255)]
    assert len(request(controlnet=first).control_images) == 1


@pytest.mark.parametrize(("size", "shape"), [("auto", (128, 192, 3)), ("64x96", (96, 64, 3))])
def test_pictures_that_differ_in_size_get_the_size_of_what_is_made(size: str, shape: tuple[int, ...]) -> None:
    controlnet = [{"name": name, "image": picture(width)} for name, width in (("edges", 16), ("depth", 24))]
    assert [np.asarray(each).shape for each in request(size=size, controlnet=controlnet).control_images] == [shape] * 2


def test_a_size_that_the_server_refuses_costs_no_memory_before() -> None:
    controlnet = [{"name": name, "image": picture(width)} for name, width in (("edges", 16), ("depth", 24))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asked = request(size="20000x20000", controlnet=controlnet)
    assert (asked.width, asked.height) == (20_000, 20_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15, "KiB"


def test_more_controlnets_than_the_pipeline_takes_are_refused_with_their_pictures_unread() -> None:
    with pytest.raises(ApiError) as caught:
        request(controlnet=[{"name": "edges", "image": "no base64"}] * 3)
    assert (caught.value.status, caught.value.param) == (400, "controlnet")
    assert caught.value.message == "controlnet has 3 entries; allowed: at most 2"


def test_a_picture_that_is_none_is_named() -> None:
    with pytest.raises(ApiError) as caught:
        request(controlnet=[{"name": "edges", "image": picture()}, {"name": "depth", "image": "no base64"}])
    assert (caught.value.status, caught.value.param) == (400, "controlnet")
    assert caught.value.message.startswith("controlnet[1].image is no base64")


@pytest.mark.parametrize(
    ("file_format", "given", "quality"),
    [
        ("png", None, None),
        ("png", 100, None),
        ("png", 99, 99),
        ("png", 0, 1),
        ("webp", 100, 100),
        ("webp", 50, 50),
        ("webp", 0, 1),
        ("jpeg", 100, 100),
        ("jpeg", 1, 1),
        ("jpeg", 0, 1),
        ("jpeg", None, None),
    ],
)
def test_compression_is_the_quality(file_format: str, given: int | None, quality: int | None) -> None:
    """Of a PNG, which has none, what says otherwise is for the server to refuse."""
    assert request(output_format=file_format, output_compression=given).output_quality == quality


@pytest.mark.parametrize(
    ("values", "previews"),
    [
        ({}, None),
        ({"partial_images": 0}, None),
        ({"partial_images": 1}, 10),
        ({"partial_images": 2}, 6),
        ({"partial_images": 3}, 5),
        ({"partial_images": 3, "num_inference_steps": 40}, 10),
        ({"partial_images": 3, "num_inference_steps": 3}, 1),
        ({"partial_images": 1, "num_inference_steps": 1}, 1),
        ({"partial_images": 1, "num_inference_steps": -5}, 1),
        ({"preview_every": 7}, 7),
        ({"partial_images": 1, "preview_every": 7}, 7),
        ({"partial_images": 3, "preview_every": 7}, 5),
        ({"partial_images": 1, "lora": {"name": "fast"}}, 2),
        ({"partial_images": 1, "lora": {"name": "fast"}, "num_inference_steps": 30}, 15),
        ({"partial_images": 1, "model": "sdxl:night", "lora": [{"name": "faster"}, {"name": "fast"}]}, 1),
        ({"partial_images": 1, "model": "sdxl:fast"}, 2),
        ({"partial_images": 1, "model": "sdxl:unknown"}, 10),
    ],
)
def test_partial_images_ask_for_previews_often_enough(values: dict[str, Any], previews: int | None) -> None:
    asked = request(stream=True, **values)
    assert (asked.previews, asked.preview_size) == (previews, previews and 512)
