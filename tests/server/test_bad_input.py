"""Every violation of the contract is INVALID_ARGUMENT with the field's name, and touches nobody else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

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
    "LoRA unknown": {"LORAS": '[{"name": "papercut"}]'},
    "LoRA path": {"LORAS": '[{"name": "../../secret"}]'},
    "LoRAs not JSON": {"LORAS": "[{"},
    "LoRAs not a list": {"LORAS": '{"name": "papercut"}'},
    "LoRAs with an unknown key": {"LORAS": '[{"name": "papercut", "path": "/x"}]'},
    "LoRAs with NaN": {"LORAS": '[{"name": "papercut", "scale": NaN}]'},
    "LoRAs huge": {"LORAS": "[" + ",".join(['{"name": "x"}'] * 10000) + "]"},
    "LoRAs nested": {"LORAS": "[" * 8000 + "]" * 8000},
    "ControlNet unknown": {"CONTROLNETS": '[{"name": "canny"}]'},
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


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("field", ["STEPS", "SEED", "GUIDANCE_SCALE", "PROMPT"])
def test_a_wrong_type_names_its_field(tiny: Any, field: str, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import wire

    monkeypatch.setitem(wire.TYPES, field, "FP32" if field != "GUIDANCE_SCALE" else "INT32")
    with pytest.raises(InferenceServerException, match=field) as caught:
        generate(tiny, tiny.model, protocol, **(GOOD | {field: 1}))
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    monkeypatch.undo()
    generate(tiny, tiny.model, **GOOD)


def test_a_missing_prompt_is_named(tiny: Any) -> None:
    with pytest.raises(InferenceServerException, match="PROMPT"):
        generate(tiny, tiny.model, SEED=1)
