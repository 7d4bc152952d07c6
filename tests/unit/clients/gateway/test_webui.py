"""What bodies of A1111's API ask of the server."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from swiftdiffusion.clients.client.pipelines import PipelineDescription
from swiftdiffusion.clients.client.request import ControlNet, GenerationRequest, Lora
from swiftdiffusion.clients.gateway.errors import ApiError
from swiftdiffusion.clients.gateway.webui_controlnet import resized
from swiftdiffusion.clients.gateway.webui_fields import MOST_PICTURES, NEUTRAL, WITHOUT_MEANING, TextToImage
from swiftdiffusion.clients.gateway.webui_prompt import without_loras
from swiftdiffusion.clients.gateway.webui_samplers import samplers, scheduler_named
from swiftdiffusion.python_backends.request.controlnets import KnownControlNet
from swiftdiffusion.python_backends.request.description import DescribedPipeline
from swiftdiffusion.python_backends.request.loras import LoraDefaults
from swiftdiffusion.python_backends.request.rules import RequestRules
from swiftdiffusion.python_backends.request.schedulers import SCHEDULERS

RULES = RequestRules(
    steps=20,
    guidance_scale=5.0,
    height=64,
    width=96,
    size_multiple=8,
    max_size=128,
    own_scheduler="PNDMScheduler",
    max_controlnets=2,
)
PIPELINE = PipelineDescription.model_validate(
    DescribedPipeline(RULES, {"edges": KnownControlNet()}, "").description({"night": LoraDefaults()})
)


def request(**values: Any) -> GenerationRequest:
    return asyncio.run(TextToImage.model_validate(values).request(PIPELINE, 2**20, "mine"))


def picture(width: int, height: int) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def with_unit(**unit: Any) -> GenerationRequest:
    given = {"model": "edges", "image": picture(96, 64), **unit}
    return request(prompt="a cat", alwayson_scripts={"ControlNet": {"args": [given]}})


def test_a_body_of_defaults_leaves_everything_to_the_server() -> None:
    asked = request(prompt="a cat")
    assert asked == GenerationRequest(
        "a cat", prompt_syntax="weighted", request_id="mine", output_format="png", previews=2, control_images=[]
    )


def test_every_field_that_is_read_reaches_the_server() -> None:
    asked = request(
        prompt="a (red:1.2) cat <lora:night:0.8>",
        negative_prompt="blur",
        seed=7,
        sampler_name="DPM++ 2M SDE",
        scheduler="karras",
        steps=30,
        cfg_scale=7,
        width=64,
        height=128,
        override_settings={"CLIP_stop_at_last_layers": 2, "samples_format": "jpg", "live_previews_enable": False},
    )
    assert asked == GenerationRequest(
        "a (red:1.2) cat",
        negative_prompt="blur",
        prompt_syntax="weighted",
        seed=7,
        scheduler="dpmpp_2m_sde_karras",
        steps=30,
        guidance_scale=7.0,
        width=64,
        height=128,
        clip_skip=1,
        loras=(Lora("night", 0.8),),
        request_id="mine",
        output_format="jpeg",
        control_images=[],
    )


def test_what_clients_send_without_asking_for_anything_is_let_pass() -> None:
    neutral = {name: allowed[-1] for name, allowed in NEUTRAL.items()}
    without_meaning = dict.fromkeys(WITHOUT_MEANING, 0.7)
    assert request(prompt="a cat", **neutral, **without_meaning) == request(prompt="a cat")


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"{name} is 0.25; allowed: .*: it is not supported"):
        TextToImage.model_validate({"prompt": "a cat", name: 0.25})


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="cfg"):
        TextToImage.model_validate({"prompt": "a cat", "cfg": 7})


def test_pictures_are_batches_times_their_size_and_not_too_many() -> None:
    assert TextToImage.model_validate({"batch_size": 2, "n_iter": 3}).count == 6
    with pytest.raises(ApiError, match=f"is {MOST_PICTURES + 16}; allowed: at most {MOST_PICTURES}"):
        assert TextToImage.model_validate({"batch_size": 16, "n_iter": MOST_PICTURES // 16 + 1}).count


@pytest.mark.parametrize(
    ("prompt", "text", "loras"),
    [
        ("a cat", "a cat", ()),
        ("a cat <lora:night>", "a cat", (Lora("night"),)),
        ("<lora:night:0.5> a cat <lora:my own-1.v2:-1>", "a cat", (Lora("night", 0.5), Lora("my own-1.v2", -1.0))),
        ("a cat <lora:night:0.5:0.5>", "a cat", (Lora("night", 0.5),)),
        ("a < b > c <3", "a < b > c <3", ()),
    ],
)
def test_loras_of_a_prompt(prompt: str, text: str, loras: tuple[Lora, ...]) -> None:
    assert without_loras(prompt) == (text, loras)


@pytest.mark.parametrize("tag", ["<hypernet:x:1>", "<lora:night:strong>", "<lora:night:0.5:0.7>"])
def test_a_tag_that_is_not_served_is_refused(tag: str) -> None:
    with pytest.raises(ApiError, match=r"prompt holds .*; allowed: <lora:NAME:SCALE>"):
        without_loras(f"a cat {tag}")


@given(st.text(alphabet="<>:lora nigh.5-", max_size=60))
def test_any_prompt_is_read_or_refused(prompt: str) -> None:
    try:
        text, loras = without_loras(prompt)
    except ApiError as error:
        assert error.status == 400
    else:
        assert loras or text == prompt


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_has_its_pair_of_names_and_its_own(name: str) -> None:
    named = SCHEDULERS[name]
    assert scheduler_named(PIPELINE, named.sampler, named.schedule) == name
    assert scheduler_named(PIPELINE, name, None) == name
    assert name in [each.name for each in samplers(PIPELINE)[named.sampler]]


@pytest.mark.parametrize(
    ("sampler", "schedule", "name"),
    [
        (None, None, None),
        ("PNDMScheduler", "Automatic", None),
        ("euler a", "automatic", "euler_a"),
        ("DPM++ 2M", "Automatic", "dpmpp_2m_karras"),
        ("DPM++ 2M", "Uniform", "dpmpp_2m"),
        ("DPM++ 2M Karras", None, "dpmpp_2m_karras"),
        ("Euler", "sgm_uniform", "euler_trailing"),
    ],
)
def test_samplers_by_the_names_that_clients_use(sampler: str | None, schedule: str | None, name: str | None) -> None:
    assert scheduler_named(PIPELINE, sampler, schedule) == name


def test_a_schedule_needs_a_sampler() -> None:
    with pytest.raises(ApiError, match="scheduler is 'Karras'; allowed for the checkpoint's own sampler: Automatic"):
        scheduler_named(PIPELINE, None, "Karras")


def test_an_unknown_sampler_is_told_those_that_there_are() -> None:
    with pytest.raises(ApiError, match=r"sampler_name is 'PLMS'; allowed: Euler, Euler a, .*, PNDMScheduler"):
        scheduler_named(PIPELINE, "PLMS", None)
    with pytest.raises(ApiError, match=r"scheduler is 'Karras'; allowed for Euler a: Automatic"):
        scheduler_named(PIPELINE, "Euler a", "Karras")


def test_a_unit_is_a_controlnet_with_its_picture() -> None:
    asked = with_unit(weight=0.5, guidance_start=0.25, guidance_end=1, control_mode="ControlNet is more important")
    assert asked.controlnets == (ControlNet("edges", 0.5, 0.25, 1.0, guess_mode=True),)
    assert [np.asarray(each).shape for each in asked.control_images] == [(64, 96, 3)]


@pytest.mark.parametrize("image", [{"image": picture(96, 64), "mask": None}, f"data:image/png;base64,{picture(8, 8)}"])
def test_pictures_of_units_come_in_several_shapes(image: object) -> None:
    assert len(with_unit(image=image, model="edges [0123abcd]").control_images) == 1
    assert with_unit(image=image, enabled=False).controlnets == ()


@pytest.mark.parametrize(
    ("unit", "sentence"),
    [
        ({"module": "canny"}, "unit 0: module"),
        ({"mask": picture(8, 8)}, "unit 0: mask"),
        ({"control_mode": 1}, "control_mode is 'My prompt is more important'; allowed: Balanced"),
        ({"control_mode": -1}, "control_mode is '-1'"),
        ({"resize_mode": "Stretch"}, "resize_mode is 'Stretch'; allowed: Just Resize"),
        ({"image": "no base64"}, "unit 0: image is no base64"),
        ({"image": None}, "unit 0: image is no whole picture"),
        ({"x": 1}, "unit 0: x"),
    ],
)
def test_a_unit_that_cannot_be_served_is_refused(unit: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ApiError, match=sentence) as caught:
        with_unit(**unit)
    assert caught.value.status == 400


def test_scripts_that_are_off_are_let_pass_and_others_refused() -> None:
    assert request(prompt="a", alwayson_scripts={"ADetailer": {"args": [False]}, "controlnet": {"args": []}})
    with pytest.raises(ApiError, match="alwayson_scripts has 'ADetailer'; allowed: ControlNet"):
        request(prompt="a", alwayson_scripts={"ADetailer": {"args": [True, {}]}})
    units = [{"model": "edges", "image": picture(8, 8)}] * 3
    with pytest.raises(ApiError, match="ControlNet has 3 units; allowed: at most 2"):
        request(prompt="a", alwayson_scripts={"ControlNet": {"args": units}})


def test_a_picture_of_another_shape_is_cut_filled_or_stretched() -> None:
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = 255
    assert resized(wide, "Crop and Resize", 32, 32).min() == 255
    filled = resized(wide, 2, 64, 64)
    assert filled.shape == (64, 64, 3)
    assert (filled[0] == 0).all()
    stretched = resized(wide, "Just Resize", 32, 32)
    assert stretched.shape == (32, 32, 3)
    assert (stretched[:, 0].max(), stretched[:, 16].min()) == (0, 255)
    same = resized(wide, 1, 32, 64)
    assert (same == wide).all()


def test_a_size_beyond_the_pipelines_makes_no_large_picture_here() -> None:
    unit = {"model": "edges", "image": picture(8, 16)}
    asked = request(prompt="a", width=10**6, height=10**6, alwayson_scripts={"ControlNet": {"args": [unit]}})
    assert [np.asarray(each).shape for each in asked.control_images] == [(128, 128, 3)]
