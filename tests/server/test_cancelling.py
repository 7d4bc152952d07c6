"""REQUEST_ID and the model `cancel`, TIMEOUT_MS: a request ends early and its place is free."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from wire import Stream, cancel, generate

pytestmark = pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
LONG: dict[str, Any] = {"PROMPT": "a cat", "STEPS": 200, "HEIGHT": 128, "WIDTH": 128}
"""It takes seconds, of which it is there for few: it is cancelled."""


def cancel_when_there(tiny: Any, request_id: str) -> None:
    """Cancels as soon as the server knows the request."""
    deadline = time.monotonic() + 30
    while not cancel(tiny, request_id):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_cancelled_request_ends_and_another_goes_on(tiny: Any) -> None:
    with ThreadPoolExecutor(2) as threads:
        kept = threads.submit(generate, tiny, tiny.model, PROMPT="a cat", SEED=1, STEPS=100)
        ended = threads.submit(generate, tiny, tiny.model, **LONG, SEED=1, REQUEST_ID="x y/z")
        cancel_when_there(tiny, "x y/z")
        with pytest.raises(InferenceServerException, match='"x y/z" was cancelled after step') as caught:
            ended.result()
        assert "CANCELLED" in str(caught.value.status())
        assert kept.result().distance(generate(tiny, tiny.model, PROMPT="a cat", SEED=1, STEPS=100)) <= 1.0
    assert not cancel(tiny, "x y/z")
    generate(tiny, tiny.model, PROMPT="a cat", REQUEST_ID="x y/z", STEPS=2)


def test_who_is_told_so_gets_no_picture(tiny: Any) -> None:
    """Not in the last step either, which is the only one here: at whatever moment the flag comes."""
    told = 0
    for moment in range(20):
        with ThreadPoolExecutor(1) as threads:
            request = threads.submit(
                generate, tiny, tiny.model, PROMPT="a cat", STEPS=1, HEIGHT=128, WIDTH=128, REQUEST_ID=f"last {moment}"
            )
            time.sleep(0.005 * moment)
            if cancel(tiny, f"last {moment}"):
                told += 1
                with pytest.raises(InferenceServerException, match="was cancelled after step"):
                    request.result()
    assert told


@pytest.mark.parametrize("request_id", [b"", b"\xff", b"x" * 5000])
def test_a_bad_id_is_refused(tiny: Any, request_id: bytes) -> None:
    tensor = grpc.InferInput("REQUEST_ID", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[request_id]], dtype=object))
    with (
        grpc.InferenceServerClient(tiny.grpc_url.split("://")[-1]) as client,
        pytest.raises(InferenceServerException, match="REQUEST_ID") as caught,
    ):
        client.infer("cancel", [tensor])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_an_unknown_id_cancels_nothing(tiny: Any) -> None:
    assert not cancel(tiny, "nobody")
    assert not cancel(tiny, "../../etc/passwd")


def test_an_id_belongs_to_one_running_request(tiny: Any) -> None:
    first = Stream(tiny, **LONG, REQUEST_ID="mine")
    first.next()
    with pytest.raises(InferenceServerException, match="REQUEST_ID") as caught:
        generate(tiny, tiny.model, PROMPT="a cat", STEPS=1, REQUEST_ID="mine")
    assert "INVALID_ARGUMENT" in str(caught.value.status())
    assert cancel(tiny, "mine")
    with pytest.raises(InferenceServerException, match="was cancelled after step"):
        list(first)
    first.close()


def test_a_timeout_frees_the_place(tiny: Any) -> None:
    """Whether it is foreseen at admission, or comes while the request runs."""
    with pytest.raises(InferenceServerException, match=r"TIMEOUT_MS (allows|passed after step)"):
        generate(tiny, tiny.model, **LONG, TIMEOUT_MS=100)
    generate(tiny, tiny.model, PROMPT="a cat", STEPS=2, TIMEOUT_MS=60000)
