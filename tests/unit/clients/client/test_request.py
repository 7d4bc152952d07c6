"""A request becomes exactly the tensors of the wire contract that were set."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from swiftdiffusion.clients import ControlNet, GenerationRequest, Lora
from swiftdiffusion.clients.client.request import cancel_tensors


def tensors(**values: object) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in GenerationRequest("a red circle", **values).tensors()}


def test_only_what_is_set_is_sent() -> None:
    sent = tensors()
    assert list(sent) == ["PROMPT"]
    assert sent["PROMPT"].shape == (1, 1)
    assert sent["PROMPT"][0, 0] == b"a red circle"


def test_zero_and_empty_values_count_as_set() -> None:
    sent = tensors(negative_prompt="", seed=0, guidance_scale=0.0, lora_bound=0, lora_patch_step=0)
    assert set(sent) == {"PROMPT", "NEGATIVE_PROMPT", "SEED", "GUIDANCE_SCALE", "LORA_BOUND", "LORA_PATCH_STEP"}


@pytest.mark.parametrize(
    ("field", "name", "value", "dtype", "datatype"),
    [
        ("seed", "SEED", 2**40, np.int64, "INT64"),
        ("steps", "STEPS", 7, np.int32, "INT32"),
        ("guidance_scale", "GUIDANCE_SCALE", 7.5, np.float32, "FP32"),
        ("guidance_rescale", "GUIDANCE_RESCALE", 0.5, np.float32, "FP32"),
        ("clip_skip", "CLIP_SKIP", 1, np.int32, "INT32"),
        ("height", "HEIGHT", 64, np.int32, "INT32"),
        ("width", "WIDTH", 96, np.int32, "INT32"),
        ("lora_bound", "LORA_BOUND", 3, np.int32, "INT32"),
        ("lora_patch_step", "LORA_PATCH_STEP", 2, np.int32, "INT32"),
        ("timeout_ms", "TIMEOUT_MS", 900, np.int32, "INT32"),
    ],
)
def test_numbers(field: str, name: str, value: float, dtype: type, datatype: str) -> None:
    tensor = GenerationRequest("x", **{field: value}).tensors()[-1]  # type: ignore[arg-type]
    assert (tensor.name, tensor.datatype, tensor.data.dtype, tensor.data.shape) == (name, datatype, dtype, (1, 1))
    assert tensor.data[0, 0] == value


@given(st.text())
def test_any_text_survives(text: str) -> None:
    sent = {tensor.name: tensor.data for tensor in GenerationRequest(text, negative_prompt=text).tensors()}
    assert sent["PROMPT"][0, 0].decode() == sent["NEGATIVE_PROMPT"][0, 0].decode() == text


@pytest.mark.parametrize("kind", [dict, json.dumps])
def test_mask_aware_is_a_preset_or_json_or_what_that_says(kind: type) -> None:
    asked = {"source": "own", "exact_steps": [0, 5]}
    assert tensors(mask_aware="fast")["MASK_AWARE"][0, 0] == b"fast"
    assert json.loads(tensors(mask_aware=kind(asked))["MASK_AWARE"][0, 0]) == asked


def test_mask_aware_that_is_no_json_is_named() -> None:
    with pytest.raises(ValueError, match=r"MASK_AWARE is .*, which is no JSON"):
        tensors(mask_aware={"source": "own", "exact_steps": [np.int64(3)]})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("mask_aware", True, "MASK_AWARE is True; wanted: a text, or a mapping"),
        ("mask_aware", ["fast"], r"MASK_AWARE is \['fast'\]; wanted"),
        ("strength", "0.5", "STRENGTH is '0.5'; wanted: a number"),
        ("scheduler", 3, "SCHEDULER is 3; wanted: a text"),
        ("init_image", 5, "the init_image is of int; wanted: a PIL image, a uint8 array, or a file"),
    ],
)
def test_what_is_of_another_type_is_named(field: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tensors(**{field: value})


@pytest.mark.parametrize("as_path", [str, Path])
def test_pictures_that_are_files_are_the_server_s_to_decode(tmp_path: Path, as_path: type) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.full((8, 8), 25500, np.uint16)).save(path)
    sent = tensors(init_image=as_path(path), mask_image=path.read_bytes())
    assert sent["ENCODED_INIT_IMAGE"][0, 0] == sent["ENCODED_MASK_IMAGE"][0, 0] == path.read_bytes()


def test_16_bits_of_grey_are_8(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((8, 8), 25500, np.uint16))
    deep.save(tmp_path / "x.png")
    sent = tensors(init_image=deep, mask_image=deep, controlnets=[ControlNet("x")], control_images=[tmp_path / "x.png"])
    assert {np.unique(sent[name]).item() for name in ("INIT_IMAGE", "MASK_IMAGE", "CONTROL_IMAGES")} == {99}


def test_the_syntax_of_prompts_is_sent_as_it_is_named() -> None:
    assert tensors(prompt_syntax="weighted")["PROMPT_SYNTAX"][0, 0] == b"weighted"


def test_number_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="SEED is 9223372036854775808"):
        tensors(seed=2**63)


def test_adapters_are_json_without_unset_keys() -> None:
    sent = tensors(
        loras=[Lora("papercut", 0.8), Lora("ink", patch_step=0)],
        controlnets=(ControlNet("canny", end=0.5), ControlNet("union", control_mode=(0, 3))),
    )
    assert json.loads(sent["LORAS"][0, 0]) == [{"name": "papercut", "scale": 0.8}, {"name": "ink", "patch_step": 0}]
    assert json.loads(sent["CONTROLNETS"][0, 0]) == [
        {"name": "canny", "end": 0.5},
        {"name": "union", "control_mode": [0, 3]},
    ]


def test_control_images_from_pil_arrays_and_files(tmp_path) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    file = tmp_path / "edges.png"
    Image.fromarray(pixels).save(file)
    sent = tensors(control_images=[pixels, Image.fromarray(pixels), file, str(file)])["CONTROL_IMAGES"]
    assert sent.dtype == np.uint8
    assert sent.shape == (1, 4, 4, 6, 3)
    assert (sent == pixels).all()


def test_grey_pictures_become_rgb() -> None:
    assert tensors(control_images=[Image.new("L", (5, 4), 9)])["CONTROL_IMAGES"].shape == (1, 1, 4, 5, 3)


def test_control_images_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="4x2, 6x2"):
        tensors(control_images=[np.zeros((2, 4, 3), np.uint8), np.zeros((2, 6, 3), np.uint8)])


def test_control_image_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        tensors(control_images=[np.zeros((2, 4, 3))])


def test_request_id_is_made_once_and_kept() -> None:
    assert GenerationRequest("x", request_id="mine").with_request_id().request_id == "mine"
    first, second = (GenerationRequest("x").with_request_id().request_id for _ in range(2))
    assert first
    assert first != second


def test_cancel_takes_the_id() -> None:
    (tensor,) = cancel_tensors("mine")
    assert (tensor.name, tensor.datatype, tensor.data.tolist()) == ("REQUEST_ID", "BYTES", [[b"mine"]])
