"""The official OpenAI client against the gateway, in front of the demo server."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import APIError, APIStatusError, AuthenticationError, BadRequestError, NotFoundError, OpenAI, RateLimitError
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse, Model
from PIL import Image

from gateways import GatewayThread, gateway_thread
from swiftdiffusion.clients.gateway.settings import GatewaySettings
from swiftdiffusion.python_backends.launcher import TritonServer
from wire import PROMPT, generate

EDGES = Path(__file__).resolve().parents[2] / "docs/edges.png"
ASKED: dict[str, Any] = {"prompt": PROMPT, "model": "sdxl", "size": "128x128"}
MORE: dict[str, Any] = {"seed": 7, "num_inference_steps": 4, "guidance_scale": 1.0}
"""Of one row: rounding depends on which rows a shard evaluates together."""
KEY = "sk-alice-0123456789abcdef"


@pytest.fixture
def client(gateway: GatewayThread) -> Iterator[OpenAI]:
    with gateway.openai() as client:
        yield client


@pytest.fixture(scope="module")
def raw(server: TritonServer) -> np.ndarray:
    """The picture that all of these are, as tritonclient gets it."""
    return generate(server, "sdxl", PROMPT=PROMPT, SEED=7, STEPS=4, GUIDANCE_SCALE=1.0, HEIGHT=128, WIDTH=128).image


def pixels(text: str | None) -> np.ndarray:
    """Of a file in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text or "", validate=True))))


def ask(client: OpenAI, extra: dict[str, Any] | None = None, **values: Any) -> ImagesResponse:
    """Pictures in one answer."""
    return client.images.generate(**{**ASKED, **values}, extra_body={**MORE, **(extra or {})})


def events(client: OpenAI, extra: dict[str, Any] | None = None, **values: Any) -> list[Any]:
    return list(
        client.images.generate(**{**ASKED, **values}, stream=True, extra_body={**MORE, **(extra or {})})  # type: ignore
    )


def extras(answer: Any) -> dict[str, Any]:
    """Fields that are this project's."""
    return dict(answer.model_extra)


def test_several_pictures_have_seeds_that_count_up(client: OpenAI, raw: np.ndarray) -> None:
    answer = ask(client, n=2)
    ImagesResponse.model_validate(answer.to_dict())
    assert (answer.output_format, answer.size, answer.background) == ("png", "128x128", "opaque")
    assert answer.data is not None
    first, second = answer.data
    assert [extras(each)["seed"] for each in (first, second)] == [7, 8]
    assert extras(first)["info"]["steps"] == 4
    distances = [np.abs(pixels(each.b64_json).astype(int) - raw).mean() for each in (first, second)]
    assert distances[0] < 1 < distances[1], "steps of several pictures are made together, which rounds differently"


@pytest.mark.parametrize(("output_format", "compression"), [("png", 100), ("png", None), ("webp", 100)])
def test_lossless_files_have_the_pixels_that_tritonclient_gets(
    client: OpenAI, raw: np.ndarray, output_format: str, compression: int | None
) -> None:
    values = {"output_format": output_format, **({} if compression is None else {"output_compression": compression})}
    (single,) = ask(client, **values).data or ()
    *_, last = events(client, **values)
    (linked,) = ask(client, response_format="url", **values).data or ()
    fetched = httpx2.get(linked.url or "")
    assert fetched.headers["content-type"] == f"image/{output_format}"
    assert (last.type, last.output_format) == ("image_generation.completed", output_format)
    for text in (single.b64_json, last.b64_json, base64.b64encode(fetched.content).decode()):
        assert (pixels(text) == raw).all()


def test_a_jpeg_is_near(client: OpenAI, raw: np.ndarray) -> None:
    small, large = (
        (ask(client, output_format="jpeg", output_compression=quality).data or [])[0].b64_json or ""
        for quality in (0, 100)
    )
    assert len(small) < len(large)
    assert np.abs(pixels(large).astype(int) - raw).mean() < 3


def test_loras_and_controlnets_are_what_they_are_on_the_wire(client: OpenAI, server: TritonServer) -> None:
    with Image.open(EDGES) as opened:
        control = np.asarray(opened.convert("RGB"))
    wanted = generate(
        server,
        "sdxl",
        PROMPT=PROMPT,
        SEED=7,
        STEPS=4,
        GUIDANCE_SCALE=1.0,
        HEIGHT=128,
        WIDTH=128,
        LORAS=json.dumps([{"name": "night"}, {"name": "outline", "scale": 0.7}]),
        LORA_BOUND=0,
        CONTROLNETS=json.dumps([{"name": "edges", "scale": 0.8}]),
        CONTROL_IMAGES=control[None, None],
    )
    picture = base64.b64encode(EDGES.read_bytes()).decode()
    more = {
        "lora": {"name": "outline", "scale": 0.7},
        "lora_bound": 0,
        "controlnet": [{"name": "edges", "image": f"data:image/png;base64,{picture}", "scale": 0.8}],
    }
    (got,) = ask(client, more, model="sdxl:night").data or ()
    info = extras(got)["info"]
    same_path = info["lora_path"] == wanted.info["lora_path"]  # into the weights or beside them, as costs less then
    assert np.abs(pixels(got.b64_json).astype(int) - wanted.image).max() <= (0 if same_path else 1)
    assert [(lora["name"], lora["scale"]) for lora in info["loras"]] == [("night", 1.0), ("outline", 0.7)]
    assert info["controlnets"][0]["name"] == "edges"


def test_a_stream_has_partial_images_and_then_the_picture(client: OpenAI) -> None:
    slow = {"size": "512x512", "output_format": "webp"}  # a preview that is not fetched before the next is lost
    *partial, last = events(client, {"num_inference_steps": 16}, partial_images=3, **slow)
    assert [type(event) for event in partial] == [ImageGenPartialImageEvent] * 3
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    for event in (*partial, last):
        type(event).model_validate(event.to_dict())
        assert (event.output_format, event.size, event.background) == ("webp", "512x512", "opaque")
        assert pixels(event.b64_json).shape == (512, 512, 3)
    assert isinstance(last, ImageGenCompletedEvent)
    assert extras(last)["seed"] == 7
    shown = [pixels(event.b64_json).astype(int) for event in (*partial, last)]
    distances = [np.abs(picture - shown[-1]).mean() for picture in shown[:-1]]
    assert distances[0] > distances[-1] > 0, "each is nearer to the picture"


def test_a_stream_may_tell_of_every_step(gateway: GatewayThread) -> None:
    """In events that the SDK does not know, for the page and those who read them by themselves."""
    slow = {"size": "512x512", "num_inference_steps": 8}  # a preview that is not fetched before the end is lost
    body = {**ASKED, **MORE, **slow, "stream": True, "progress": True, "preview_every": 4}
    with httpx2.stream("POST", f"{gateway.url}/v1/images/generations", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        text = answer.read().decode()
    told = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert re.findall("^event: (.*)$", text, re.MULTILINE) == [event["type"] for event in told]
    assert [(event["step"], event["of"], "b64_json" in event) for event in told[:-1]] == [
        (step, 8, step == 4) for step in range(1, 8)
    ]
    assert told[-1]["type"] == "image_generation.completed"


def test_models_are_pipelines_and_their_loras(client: OpenAI) -> None:
    models = list(client.models.list())
    for model in models:
        Model.model_validate(model.to_dict())
    assert models[0].id == "sdxl"
    assert {"sdxl:night", "sdxl:outline"} <= {model.id for model in models}
    assert extras(models[0])["pipeline"]["controlnets"]
    assert client.models.retrieve("sdxl:night").id == "sdxl:night"
    with pytest.raises(NotFoundError, match="no model is called"):
        client.models.retrieve("sd99")


@pytest.mark.parametrize(
    ("values", "extra", "kind", "code", "param", "said"),
    [
        (
            {"model": "sd99"},
            {},
            NotFoundError,
            "model_not_found",
            "model",
            "no pipeline is called 'sd99'; allowed: sdxl",
        ),
        ({"size": "128x65"}, {}, BadRequestError, None, "size", "HEIGHT is 65; allowed: "),
        ({"size": "0x64"}, {}, BadRequestError, None, "size", "WIDTH is 0; allowed: "),
        ({}, {"num_inference_steps": 0}, BadRequestError, None, "num_inference_steps", "STEPS is 0; allowed: "),
        ({}, {"num_inference_steps": 10**30}, BadRequestError, None, "num_inference_steps", "STEPS is 1000000"),
        ({}, {"scheduler": "nope"}, BadRequestError, None, "scheduler", "SCHEDULER is"),
        ({}, {"guidance_scale": 1e300}, BadRequestError, None, "guidance_scale", "GUIDANCE_SCALE is inf"),
        ({}, {"lora": {"name": "nihgt"}}, BadRequestError, None, "lora", 'LORAS names "nihgt"; allowed: .*night'),
        ({"model": "sdxl:../../x"}, {}, BadRequestError, None, "lora", 'LORAS names "../../x"; allowed: '),
        (
            {"output_format": "png", "output_compression": 50},
            {},
            BadRequestError,
            None,
            "output_compression",
            "OUTPUT_Q",
        ),
        ({"prompt": "x" * 100_000}, {}, BadRequestError, None, "prompt", "PROMPT "),
        ({"quality": "hd"}, {}, BadRequestError, None, "quality", "quality is 'hd'"),
        ({}, {"steps": 4}, BadRequestError, None, "steps", "steps is no field of this route; allowed: prompt, "),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_is_a_typed_error_with_the_server_s_sentence(
    client: OpenAI, values: Any, extra: Any, kind: type[APIStatusError], code: str, param: str, said: str, stream: bool
) -> None:
    """A stream that fails before anything has happened is none: its status says so."""
    try:
        with pytest.raises(kind, match=said) as caught:
            (events if stream else ask)(client, extra, **values)
    finally:
        assert httpx2.get(str(client.base_url).replace("/v1/", "/health")).status_code == 200
    assert (caught.value.code, caught.value.param, caught.value.type) == (code, param, "invalid_request_error")


@pytest.mark.parametrize("timeout_ms", [1, 300])
@pytest.mark.parametrize("stream", [False, True])
def test_too_little_time_is_told_with_the_server_s_sentence(client: OpenAI, timeout_ms: int, stream: bool) -> None:
    with pytest.raises(APIError, match="TIMEOUT_MS") as caught:
        (events if stream else ask)(client, {"timeout_ms": timeout_ms, "num_inference_steps": 100})
    assert caught.value.code in ("never_in_time", "overloaded", "timeout")
    if isinstance(caught.value, APIStatusError):
        assert caught.value.status_code in (400, 429, 504)
        assert caught.value.status_code != 429 or caught.value.response.headers["retry-after"].isdigit()


def test_more_pictures_than_the_gateway_takes_are_a_rate_limit(server: TritonServer) -> None:
    settings = GatewaySettings(servers=(server.grpc_url,), max_runs=1)
    with gateway_thread(settings) as gateway, gateway.openai() as client:
        with pytest.raises(RateLimitError, match="allowed: 1 at once") as caught:
            ask(client, n=2)
        assert caught.value.response.headers["retry-after"] == "1"
        assert len(ask(client).data or ()) == 1


def test_keys_from_end_to_end(server: TritonServer, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[alice]\nkey_sha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n')
    with gateway_thread(GatewaySettings(servers=(server.grpc_url,), keys_file=file)) as gateway:
        with gateway.openai(KEY) as client:
            (picture,) = ask(client, response_format="url").data or ()
            assert httpx2.get(picture.url or "").status_code == 200, "who has the URL needs no key"
            assert httpx2.get((picture.url or "")[:-1] + "x").status_code == 403
            assert client.models.list().data
        with gateway.openai("sk-mallory-0123456789") as client:
            for call in (lambda: ask(client), lambda: events(client), lambda: client.models.list()):
                with pytest.raises(AuthenticationError, match="this gateway does not know the key") as caught:
                    call()
                assert caught.value.code == "invalid_api_key"
        assert httpx2.get(f"{gateway.url}/health").status_code == 200
        assert "caller=alice" in gateway.log
        assert not any(secret in gateway.log for secret in (KEY, "mallory", PROMPT, "signature"))
