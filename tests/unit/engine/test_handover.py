"""What a denoiser tells the decoder arrives as it was said; what a client says in its place is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.python_backends.backend.request_ends import Ending
from swiftdiffusion.python_backends.common.errors import InvalidRequestError, RequestTimeoutError, to_report
from swiftdiffusion.python_backends.engine.handover import Handover, Report
from swiftdiffusion.python_backends.request.completed import Arrival, CompletedRequest, LoraUse
from swiftdiffusion.python_backends.request.outputs import FileOutput, Previews

REQUEST = CompletedRequest(
    "run",
    "ein grüner Stern \U0001f98a",
    None,
    7,
    20,
    5.0,
    64,
    96,
    "euler",
    loras=(LoraUse("ink", 0.5, 2),),
    arrival=Arrival("sdxl", 12.5),
    output=FileOutput("png", 100, base64=True, metadata=True),
    previews=Previews(2, 64, "vae", FileOutput("png", 100, base64=True)),
)
ENDING = Ending("run", "mine", "sdxl", 12.5, due=20.0, seconds={"encoding": 0.25, "waiting": 1.0})
SENTENCE = "HANDOVER is not what a denoiser writes"


@pytest.mark.parametrize(
    "handover",
    [
        Handover(),
        Handover(request=REQUEST),
        Handover(True, REQUEST, 13.5, ENDING),
        Handover(True, replace(REQUEST, output=None, previews=None), 13.5),
        Handover(error=Report(**to_report(RequestTimeoutError("TIMEOUT_MS passed after step 3 of 20")))),
    ],
)
def test_it_arrives_as_it_was_said(handover: Handover) -> None:
    assert Handover.from_json(handover.to_json()) == handover


GOOD: dict[str, Any] = json.loads(Handover(True, REQUEST, 13.5, ENDING).to_json())


@pytest.mark.parametrize(
    "change",
    [
        {"final": 1},
        {"final": None},
        {"more": 1},
        {"request": {}},
        {"request": asdict(REQUEST) | {"height": 10**8}},
        {"request": asdict(REQUEST) | {"output": {"format": "gif", "quality": 90}}},
        {"request": asdict(REQUEST) | {"output": {"format": "png", "quality": 0}}},
        {"request": asdict(REQUEST) | {"previews": asdict(REQUEST)["previews"] | {"size": 10**6}}},
        {"request": asdict(REQUEST) | {"previews": asdict(REQUEST)["previews"] | {"every": 0}}},
        {"done_at": "now"},
        {"done_at": float("nan")},
        {"ending": {"run_id": "run"}},
        {"ending": "run"},
        {"error": "late"},
        {"error": {"type": 1}},
        {"error": {}},
        {"error": {"type": "RequestTimeoutError"}},
    ],
)
def test_what_is_nearly_one_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Handover.from_json(json.dumps(GOOD | change))
    assert str(caught.value) == SENTENCE


@given(
    st.text(max_size=200) | st.sampled_from(["[" * 100_000, '{"final": ' * 1000, "{}x", "null", "0", "NaN", "\ud800"])
)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Handover.from_json(text)
    assert str(caught.value) == SENTENCE


@pytest.mark.parametrize("run_id", ["", "../../elsewhere", "/etc/passwd", ".", "a/b", "a\\b", "x" * 300, "a\n", "é"])
def test_a_run_that_would_be_a_path_is_refused(run_id: str) -> None:
    """Files of requests are called after their runs."""
    with pytest.raises(InvalidRequestError, match=SENTENCE):
        Handover.from_json(json.dumps(GOOD | {"ending": asdict(ENDING) | {"run_id": run_id}}))
    with pytest.raises(InvalidRequestError, match="REQUEST is not what `preprocess` writes"):
        CompletedRequest.from_json(json.dumps(asdict(REQUEST) | {"run_id": run_id}))
