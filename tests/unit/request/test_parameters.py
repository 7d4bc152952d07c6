"""What a client's JSON holds beside its inputs."""

from __future__ import annotations

import pytest

from swiftdiffusion.export.repository.config_parts import CLIENT_INPUTS
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.request.parameters import OTHER_NAMES, refuse_unread

INPUTS = [name for name, *_ in CLIENT_INPUTS]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("seed", "SEED"),
        ("LORA", "LORAS"),
        ("negativePrompt", "NEGATIVE_PROMPT"),
        ("control_image", "CONTROL_IMAGES"),
        ("guidance", "GUIDANCE_SCALE"),
        ("cfg", "GUIDANCE_SCALE"),
        ("sampler_index", "SCHEDULER"),
        ("num_inference_steps", "STEPS"),
        ("strength", "STRENGTH"),
        ("image", "INIT_IMAGE"),
    ],
)
def test_the_nearest_input_is_named(given: str, meant: str) -> None:
    with pytest.raises(InvalidRequestError, match=f'"{given}" is no input; allowed: the nearest input is {meant} '):
        refuse_unread([given], INPUTS, "")


@pytest.mark.parametrize("given", ["num_images", "zzz", "sigmas", "x" * 5000])
def test_what_resembles_none_gets_all(given: str) -> None:
    with pytest.raises(InvalidRequestError, match="allowed: the inputs PROMPT, NEGATIVE_PROMPT, ") as caught:
        refuse_unread(["id", given], INPUTS, "")
    assert len(str(caught.value)) < 800


def test_what_the_operator_lets_pass() -> None:
    refuse_unread(["id", "x-tenant", "traceparent"], INPUTS, "x-.*|traceparent")
    with pytest.raises(InvalidRequestError, match='"x-tenant" is no input'):
        refuse_unread(["x-tenant"], INPUTS, "tenant")


def test_other_names_stand_for_inputs_that_there_are() -> None:
    assert set(OTHER_NAMES.values()) <= set(INPUTS)
