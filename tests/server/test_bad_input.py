"""Every violation of the contract is INVALID_ARGUMENT with the field's name, and touches nobody else."""

from __future__ import annotations

import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

import wire
from wire import generate

pytestmark = pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)

GOOD = {"PROMPT": "a red circle", "SEED": 1, "STEPS": 3}

BAD: dict[str, dict[str, Any]] = {
    "prompt too long": {"PROMPT": "a" * 5000},
    "prompt not UTF-8": {"PROMPT": b"\xff\xfe"},
    "negative prompt not UTF-8": {"NEGATIVE_PROMPT": b"caf\xe9"},
    "prompt with NUL": {"PROMPT": "a\0b"},
    "seed negative": {"SEED": -1},
    "steps zero": {"STEPS": 0},
    "steps negative": {"STEPS": -3},
    "steps too many": {"STEPS": 10**6},
    "steps beyond the scheduler": {"STEPS": 60, "SCHEDULER": "lcm"},
    "guidance NaN": {"GUIDANCE_SCALE": float("nan")},
    "guidance infinite": {"GUIDANCE_SCALE": float("inf")},
    "guidance negative": {"GUIDANCE_SCALE": -1.0},
    "height not a multiple": {"HEIGHT": 65},
    "height zero": {"HEIGHT": 0},
    "width too large": {"WIDTH": 16384},
    "scheduler unknown": {"SCHEDULER": "dpm++"},
    "scheduler empty": {"SCHEDULER": ""},
    "clip skip too deep": {"CLIP_SKIP": 3},
    "guidance rescale beyond 1": {"GUIDANCE_RESCALE": 1.5},
    "prompt syntax unknown": {"PROMPT_SYNTAX": "a1111"},
    "weight too large": {"PROMPT": "a (cat:9)", "PROMPT_SYNTAX": "weighted"},
    "chunks too many": {"NEGATIVE_PROMPT": "cat BREAK " * 8 + "a", "PROMPT_SYNTAX": "weighted"},
    "LoRA unknown": {"LORAS": '[{"name": "papercut"}]'},
    "LoRA path": {"LORAS": '[{"name": "../../secret"}]'},
    "LoRAs not JSON": {"LORAS": "[{"},
    "LoRAs not a list": {"LORAS": '{"name": "papercut"}'},
    "LoRAs with an unknown key": {"LORAS": '[{"name": "papercut", "path": "/x"}]'},
    "LoRAs with NaN": {"LORAS": '[{"name": "papercut", "scale": NaN}]'},
    "LoRAs huge": {"LORAS": "[" + ",".join(['{"name": "x"}'] * 10000) + "]"},
    "LoRAs nested": {"LORAS": "[" * 8000 + "]" * 8000},
    "ControlNet unknown": {"CONTROLNETS": '[{"name": "scribble"}]'},
    "ControlNet scale": {"CONTROLNETS": '[{"name": "canny", "scale": "1"}]'},
    "LoRA bound": {"LORA_BOUND": -1},
    "LoRA patch step": {"LORA_PATCH_STEP": -5},
    "control images without ControlNets": {"CONTROL_IMAGES": np.zeros((1, 1, 64, 64, 3), np.uint8)},
    "request id empty": {"REQUEST_ID": ""},
    "request id too long": {"REQUEST_ID": "x" * 2000},
    "timeout zero": {"TIMEOUT_MS": 0},
    "two prompts": {"PROMPT": np.array([[b"a", b"b"]], dtype=object)},
    "batch of two": {"PROMPT": np.array([[b"a"], [b"b"]], dtype=object)},
}
FIELDS = {"steps beyond the scheduler": "STEPS", "batch of two": "batch"}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("case", BAD)
def test_a_violation_names_its_field(tiny: Any, case: str, protocol: str) -> None:
    expected = generate(tiny, tiny.model, **GOOD)
    with pytest.raises(InferenceServerException) as caught:
        generate(tiny, tiny.model, protocol, **(GOOD | BAD[case]))
    assert FIELDS.get(case, next(iter(BAD[case]))) in caught.value.message()
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    assert generate(tiny, tiny.model, **GOOD).distance(expected) <= 1.0


UNREAD = {
    "seed": "the nearest input is SEED",
    "steps": "the nearest input is STEPS",
    "LORA": "the nearest input is LORAS",
    "num_inference_steps": "the nearest input is STEPS",
    "zzz": "the inputs PROMPT, NEGATIVE_PROMPT",
}


@pytest.mark.parametrize("key", UNREAD)
def test_a_key_that_nobody_reads_is_named(tiny: Any, key: str) -> None:
    body = {"PROMPT": "a red circle", "SEED": 1, "STEPS": 3}
    status, answer = wire.post(tiny, f"v2/models/{tiny.inner('preprocess')}/generate", body | {key: 7})
    assert status == 400
    assert f'"{key}" is no input; allowed: {UNREAD[key]}' in answer["error"]


def test_keys_that_triton_reads_are_taken(tiny: Any) -> None:
    body = {"PROMPT": "a red circle", "SEED": 1, "STEPS": 3, "id": "17"}
    status, answer = wire.post(tiny, f"v2/models/{tiny.model}/generate", body)
    assert status == 200
    assert "INFO" in answer
    status, answer = wire.post(tiny, f"v2/models/{tiny.model}/generate", body | {"seed": 1})
    assert (status, '"seed" is no input' in answer["error"]) == (400, True)


def test_a_parameter_that_nobody_reads_is_named(tiny: Any) -> None:
    inputs = wire.inputs(grpc, GOOD)
    with grpc.InferenceServerClient(tiny.grpc_url.split("://")[-1]) as client:
        with pytest.raises(InferenceServerException, match=r'"guidance" is no input; .* GUIDANCE_SCALE'):
            client.infer(tiny.model, inputs, parameters={"guidance": 7})
        client.infer(tiny.model, inputs, request_id="17", priority=1, timeout=60_000_000)


@pytest.mark.parametrize("entry", [b'"\xff": 1', b'"seed": "\xff"', b'"id": "\xff"'])
def test_a_parameter_that_is_no_text(tiny: Any, entry: bytes) -> None:
    body = b'{"PROMPT": "a red circle", ' + entry + b"}"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{tiny.http_url}/v2/models/{tiny.model}/generate", body)
    assert caught.value.code == 400
    assert "parameters that are not UTF-8; allowed: UTF-8" in caught.value.read().decode()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("field", ["STEPS", "SEED", "GUIDANCE_SCALE", "PROMPT"])
def test_a_wrong_type_names_its_field(tiny: Any, field: str, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wire.TYPES, field, "FP32" if field != "GUIDANCE_SCALE" else "INT32")
    with pytest.raises(InferenceServerException, match=field) as caught:
        generate(tiny, tiny.model, protocol, **(GOOD | {field: 1}))
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    monkeypatch.undo()
    generate(tiny, tiny.model, **GOOD)


def test_a_missing_prompt_is_named(tiny: Any) -> None:
    with pytest.raises(InferenceServerException, match="PROMPT is missing") as caught:
        generate(tiny, tiny.model, SEED=1)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("request_json", ["{}", '{"steps": "x"}', "[[["])
def test_a_call_of_an_inner_model_harms_nobody(tiny: Any, request_json: str) -> None:
    """Somebody who bypasses `preprocess` is refused while another's request runs in the same batch."""
    expected = generate(tiny, tiny.model, **(GOOD | {"STEPS": 60}))
    with (
        ThreadPoolExecutor(1) as threads,
        grpc.InferenceServerClient(tiny.grpc_url.split("://")[-1]) as client,
    ):
        running = threads.submit(generate, tiny, tiny.model, **(GOOD | {"STEPS": 60}))
        for model in (tiny.inner("denoiser"), tiny.inner("text_encoder")):
            tensors = []
            for entry in client.get_model_metadata(model).inputs:
                shape = [1, *(max(size, 1) for size in entry.shape[1:])]
                is_text = entry.datatype == "BYTES"
                text = request_json if entry.name == "REQUEST" else "not JSON"
                data = np.full(shape, text.encode(), dtype=object) if is_text else np.zeros(shape, np.float32)
                tensor = grpc.InferInput(entry.name, shape, entry.datatype)
                tensor.set_data_from_numpy(data)
                tensors.append(tensor)
            with pytest.raises(InferenceServerException, match="REQUEST is not what `preprocess` writes"):
                client.infer(model, tensors)
        assert running.result().distance(expected) <= 1.0


def test_equal_sequence_ids_do_not_mix_requests(tiny: Any) -> None:
    """A client may set a sequence id; another client's request with the same id stays its own."""
    expected = [generate(tiny, tiny.model, **(GOOD | {"SEED": seed, "STEPS": 30})) for seed in range(4)]

    def infer(seed: int) -> np.ndarray | None:
        with grpc.InferenceServerClient(tiny.grpc_url.split("://")[-1]) as client:
            tensors = wire.inputs(grpc, GOOD | {"SEED": seed, "STEPS": 30})
            try:
                return client.infer(tiny.model, tensors, sequence_id=5).as_numpy("IMAGE")[0]
            except InferenceServerException:
                return None  # Triton refuses a sequence that was not started, which is fair

    with ThreadPoolExecutor(4) as threads:
        pictures = list(threads.map(infer, range(4)))
    for picture, own in zip(pictures, expected, strict=True):
        assert picture is None or own.distance(picture) <= 1.0
