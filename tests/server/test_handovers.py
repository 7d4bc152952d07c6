"""A client that calls `vae_decoder` by itself is told so, and harms nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

import wire
from stages import Stages

pytestmark = pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
WRONG = "HANDOVER is not what a denoiser writes"
PROGRESS = b'{"step": 1, "of": 4}'
FIELDS: dict[str, Any] = {"PROMPT": "a red circle", "SEED": 1, "STEPS": 3, "GUIDANCE_SCALE": 1.0}


def decode(tiny: Any, handover: bytes, info: bytes = PROGRESS) -> Any:
    """What the model answers to texts, and no latents to speak of."""
    tensors = [grpc.InferInput("LATENTS", [1, 4, 4, 4], "FP32")]
    tensors[0].set_data_from_numpy(np.zeros((1, 4, 4, 4), np.float32))
    for name, text in (("HANDOVER", handover), ("INFO", info)):
        tensors.append(grpc.InferInput(name, [1, 1], "BYTES"))
        tensors[-1].set_data_from_numpy(np.array([[text]], dtype=object))
    with grpc.InferenceServerClient(tiny.grpc_url.split("://")[-1]) as client:
        return client.infer(tiny.inner("vae_decoder"), tensors)


@pytest.mark.parametrize(
    "handover",
    [
        b"",
        b"null",
        b"not JSON",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"final": 1}',
        b'{"final": true, "more": 1}',
        b'{"request": {}}',
        b'{"error": {}}',
        b'{"error": {"type": "RequestTimeoutError"}}',
        b'{"ending": {"run_id": "x"}}',
    ],
)
def test_what_no_denoiser_wrote_is_refused(tiny: Any, handover: bytes) -> None:
    expected = wire.generate(tiny, tiny.model, **FIELDS)
    with pytest.raises(InferenceServerException) as caught:
        decode(tiny, handover)
    assert (caught.value.message(), caught.value.status()) == (WRONG, "StatusCode.INVALID_ARGUMENT")
    assert wire.generate(tiny, tiny.model, **FIELDS).distance(expected) == 0


@pytest.mark.parametrize("info", [b"", b"[]", b"\xff", b"{}", PROGRESS, b'{"timings_ms": 1, "scheduler": "ddim"}'])
def test_a_picture_wants_the_info_of_a_run(tiny: Any, info: bytes) -> None:
    with pytest.raises(InferenceServerException) as caught:
        decode(tiny, b'{"final": true}', info)
    assert caught.value.message() == "INFO is not what a denoiser writes"
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("model", ["vae_decoder", "denoiser"])
def test_no_file_is_touched_that_a_client_names(tiny: Any, tmp_path: Path, model: str) -> None:
    """Files of requests are called after their runs."""
    precious = tmp_path / "precious"
    precious.write_text("here")
    stages = Stages(tiny)
    texts = stages.encode(**FIELDS)
    request = json.loads(texts["REQUEST"]) | {"run_id": str(precious)}
    with pytest.raises(InferenceServerException, match=" is not what ") as caught:
        if model == "denoiser":
            stages.denoise(texts | {"REQUEST": json.dumps(request).encode()})
        else:
            ending = {"run_id": str(precious), "request_id": None, "pipeline": "sdxl", "at": 0.0}
            decode(tiny, json.dumps({"final": True, "ending": ending}).encode())
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_what_a_denoiser_may_write_is_answered(tiny: Any) -> None:
    progress = decode(tiny, b"{}")
    assert progress.as_numpy("INFO")[0, 0] == PROGRESS
    assert progress.as_numpy("IMAGE") is progress.as_numpy("ENCODED_IMAGE") is None
    picture = decode(tiny, b'{"final": true}', b'{"timings_ms": {}, "scheduler": "ddim"}')
    assert picture.as_numpy("IMAGE").shape == (1, 16, 16, 3)
    assert json.loads(picture.as_numpy("INFO")[0, 0])["timings_ms"]["vae_decoder"] > 0
    with pytest.raises(InferenceServerException, match="passed after step 3") as caught:
        decode(tiny, b'{"error": {"type": "RequestTimeoutError", "message": "TIMEOUT_MS passed after step 3"}}')
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
