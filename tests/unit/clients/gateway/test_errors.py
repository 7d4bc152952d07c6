"""What ends a run, as HTTP tells it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from swiftdiffusion.clients.client.errors import (
    AdminKeyWanted,
    InvalidRequest,
    LoraUnavailable,
    ModelNotFound,
    RequestCancelled,
    RequestTimeout,
    ServerFailure,
    ServerRestarting,
    ServerUnavailable,
    ServerUnreachable,
    StreamingUnsupported,
    SwiftDiffusionError,
)
from swiftdiffusion.clients.client.request import GenerationRequest
from swiftdiffusion.clients.gateway.errors import ApiError, api_error

LATE = "TIMEOUT_MS is 50, the request would be done in 900 ms; try again later or allow more"
FULL = "the server has 64 requests in line; try again later (retry_after_ms 2100)"
NO_STORE = 'LORAS names "queue": its store does not have the file'


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code", "retry_after"),
    [
        (
            InvalidRequest("STEPS is -3; allowed: 1 to 200"),
            400,
            "invalid_request_error",
            "num_inference_steps",
            None,
            0,
        ),
        (InvalidRequest("the inputs are strange"), 400, "invalid_request_error", None, None, 0),
        (ModelNotFound("no pipeline is called 'x'"), 404, "invalid_request_error", "model", "model_not_found", 0),
        (RequestCancelled('REQUEST_ID "a" was cancelled'), 499, "cancelled", None, "cancelled", 0),
        (RequestTimeout("TIMEOUT_MS passed"), 504, "timeout", "timeout_ms", "timeout", 0),
        (ServerRestarting("x; retry in a few seconds"), 503, "server_error", None, "server_unavailable", 5),
        (ServerUnreachable("no server answers; try again later"), 503, "server_error", None, "server_unavailable", 5),
        (ServerUnavailable("controlnet canny is down"), 503, "server_error", None, "server_unavailable", 5),
        (ServerUnavailable("down (retry_after_ms 1)"), 429, "rate_limit_error", None, "overloaded", 1),
        (ServerUnavailable(FULL), 429, "rate_limit_error", None, "overloaded", 3),
        (ServerUnavailable(LATE), 429, "rate_limit_error", None, "overloaded", 5),
        (ServerUnavailable("Exceeds maximum queue size"), 429, "rate_limit_error", None, "overloaded", 5),
        (LoraUnavailable(NO_STORE), 503, "server_error", None, "server_unavailable", 5),
        (ServerFailure("boom"), 500, "server_error", None, "server_error", 0),
        (AdminKeyWanted("restricted"), 500, "server_error", None, "server_error", 0),
        (StreamingUnsupported("progress needs gRPC"), 500, "server_error", None, "server_error", 0),
        (SwiftDiffusionError("the stream ended"), 500, "server_error", None, "server_error", 0),
        (ValueError("SEED is 9, which does not fit"), 400, "invalid_request_error", "seed", None, 0),
        (ValueError("control images must be of one size"), 400, "invalid_request_error", None, None, 0),
        (ZeroDivisionError("a secret"), 500, "server_error", None, "gateway_error", 0),
        (MemoryError(), 500, "server_error", None, "gateway_error", 0),
    ],
)
def test_every_failure_has_its_status_type_param_code_and_pause(
    error: Exception, status: int, kind: str, param: str | None, code: str | None, retry_after: int
) -> None:
    told = api_error(error)
    assert (told.status, told.kind, told.param, told.code) == (status, kind, param, code)
    assert told.retry_after == (retry_after or None)
    if code != "gateway_error":
        assert told.message == str(error)


def test_where_servers_are_is_not_told() -> None:
    assert "gpu1" not in api_error(ServerUnreachable("no server answers at grpc://gpu1:8001 (refused)")).message


def test_what_went_wrong_in_the_gateway_itself_is_not_told() -> None:
    assert api_error(KeyError("a secret")).message == "the gateway failed; its log says more"


def test_what_is_an_answer_already_stays_it() -> None:
    error = ApiError(403, "no")
    assert api_error(error) is error


def test_the_server_s_sentence_comes_without_the_name_of_its_ensemble() -> None:
    told = api_error(InvalidRequest("in ensemble 'sdxl_stream', HEIGHT is 65; allowed: multiples of 8"))
    assert (told.message, told.param) == ("HEIGHT is 65; allowed: multiples of 8", "size")


FIELDS: dict[str, Any] = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "guidance_rescale": "guidance_rescale",
    "height": "size",
    "width": "size",
    "scheduler": "scheduler",
    "lora_bound": "lora_bound",
    "timeout_ms": "timeout_ms",
    "clip_skip": "clip_skip",
    "prompt_syntax": "prompt_syntax",
    "priority": "priority",
    "output_format": "output_format",
    "output_quality": "output_compression",
    "output_metadata": "output_metadata",
    "previews": "preview_every",
}
"""Of the client's requests, which are named as the contract's inputs are → of the route."""


TEXTS = {"prompt", "negative_prompt", "prompt_syntax", "scheduler", "priority", "output_format"}


@pytest.mark.parametrize("name", FIELDS)
def test_the_field_of_the_route_is_named_for_every_input_that_it_sets(name: str) -> None:
    value = "x" if name in TEXTS else 1
    sent = GenerationRequest(**{"prompt": "a", name: value}).tensors()
    assert name.upper() in [tensor.name for tensor in sent]
    assert api_error(InvalidRequest(f"{name.upper()} is 7; allowed: 8")).param == FIELDS[name]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/images/generations",
            {"error": {"message": "n is 0", "type": "invalid_request_error", "param": "n", "code": "x"}},
        ),
        ("/", {"error": {"message": "n is 0", "type": "invalid_request_error", "param": "n", "code": "x"}}),
        (
            "/sdapi/v1/txt2img",
            {"error": "invalid_request_error", "detail": "n is 0", "body": "", "errors": "n is 0"},
        ),
    ],
)
def test_each_api_has_its_shape(path: str, body: dict[str, Any]) -> None:
    answer = ApiError(400, "n is 0", param="n", code="x").response(path)
    assert (answer.status_code, json.loads(bytes(answer.body))) == (400, body)
    assert "retry-after" not in answer.headers


def test_when_to_come_back_is_a_header() -> None:
    assert api_error(ServerUnavailable(FULL)).response("/v1/").headers["retry-after"] == "3"
