"""What comes back is parsed, and unknown things are kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from swiftdiffusion.clients import ControlNet, GenerationInfo, GenerationRequest, Lora, ServerFailure
from swiftdiffusion.clients.client.result import parse_progress, parse_result
from swiftdiffusion.clients.commands.contact_sheet import contact_sheet

REQUEST = GenerationRequest("a red circle", negative_prompt="blur", request_id="mine", timeout_ms=900)
PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(1, 4, 6, 3)


def info(**values: object) -> np.ndarray:
    return np.array([[json.dumps(values).encode()]], dtype=object)


def test_result_is_typed_and_the_picture_lazy() -> None:
    lora = {"name": "papercut", "scale": 0.8, "patched_at_step": 2, "source": "disk", "modules": 140, "format": "kohya"}
    report = info(
        seed=7,
        steps=4,
        scheduler="euler",
        guidance_rescale=0.7,
        clip_skip=1,
        prompt_syntax="weighted",
        prompt_truncated=False,
        loras=[lora],
        lora_defaults={"steps": "papercut"},
        shards=["unet_shard0"],
        unet_evaluations=8,
        largest_batch=3,
        timings_ms={"denoiser": 1.5},
    )
    result = parse_result({"IMAGE": PIXELS, "INFO": report}, REQUEST, 0.5)
    assert (result.info.seed, result.info.steps, result.info.scheduler) == (7, 4, "euler")
    assert (result.info.guidance_rescale, result.info.clip_skip) == (0.7, 1)
    assert (result.info.prompt_syntax, result.info.prompt_truncated) == ("weighted", False)
    assert result.info.lora_defaults == {"steps": "papercut"}
    assert (result.info.unet_evaluations, result.info.largest_batch) == (8, 3)
    assert not result.info.model_extra
    assert result.info.loras[0].patched_at_step == 2
    assert result.info.loras[0].model_extra == {"format": "kohya"}
    assert result.info.timings_ms == {"denoiser": 1.5}
    assert result.request_id == "mine"
    assert "image" not in vars(result)
    assert isinstance(result.image, Image.Image)
    assert result.image is result.image
    assert (np.asarray(result.image) == PIXELS[0]).all()


REPORT = {
    "seed": 7,
    "steps": 9,
    "guidance_scale": 1.5,
    "height": 64,
    "width": 96,
    "scheduler": "ddim",
    "loras": [
        {"name": "ink", "scale": 0.8, "patched_at_step": 0, "bound": 4, "source": "gpu", "waited_ms": 0.0},
        {"name": "papercut", "scale": 1.0, "patched_at_step": 3, "bound": 4, "source": "remote", "waited_ms": 1.0},
    ],
}


def test_a_replay_asks_for_what_was_reported() -> None:
    asked = replace(
        REQUEST, loras=[Lora("papercut"), Lora("ink", 0.8)], lora_bound=4, controlnets=[ControlNet("canny")]
    )
    again = parse_result({"IMAGE": PIXELS, "INFO": info(**REPORT)}, asked, 0.5).replay()
    assert again == GenerationRequest(
        "a red circle",
        negative_prompt="blur",
        seed=7,
        steps=9,
        guidance_scale=1.5,
        height=64,
        width=96,
        scheduler="ddim",
        loras=(Lora("ink", 0.8, 0), Lora("papercut", 1.0, 3)),
        controlnets=[ControlNet("canny")],
        timeout_ms=900,
    )


def test_a_replay_repeats_what_a_request_with_the_prompt_alone_left_out() -> None:
    reported = {"guidance_rescale": 0.7, "clip_skip": 1, "prompt_syntax": "weighted"}
    chosen = {"lora_defaults": {"steps": "ink", "guidance_scale": "ink"}, "prompt_truncated": False}
    report = GenerationInfo.model_validate({**REPORT, **reported, **chosen})
    again = report.replay(GenerationRequest("a red circle"))
    assert {name: getattr(again, name) for name in reported} == reported
    assert (again.steps, again.guidance_scale) == (9, 1.5)


def test_a_replay_keeps_what_the_report_is_silent_on() -> None:
    asked = replace(REQUEST, guidance_rescale=0.0, clip_skip=2, prompt_syntax="plain")
    again = GenerationInfo.model_validate(REPORT).replay(asked)
    assert (again.guidance_rescale, again.clip_skip, again.prompt_syntax) == (0.0, 2, "plain")


def test_a_replay_names_a_checkpoints_own_scheduler_as_the_server_does() -> None:
    report = GenerationInfo.model_validate({**REPORT, "scheduler": "PNDMScheduler"})
    assert report.replay(REQUEST).scheduler == "PNDMScheduler"


@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 199)), max_size=5), st.integers(0, 200))
def test_a_replay_names_the_step_of_every_lora(steps: list[tuple[float, int]], bound: int) -> None:
    loras = [{"name": f"n{i}", "scale": scale, "patched_at_step": step} for i, (scale, step) in enumerate(steps)]
    report = GenerationInfo.model_validate({"seed": 1, "loras": loras})
    again = report.replay(replace(REQUEST, lora_bound=bound, lora_patch_step=bound))
    assert [(lora.scale, lora.patch_step) for lora in again.loras] == steps
    assert (again.lora_bound, again.lora_patch_step) == (None, None)


def test_a_replay_without_a_step_is_refused() -> None:
    report = GenerationInfo.model_validate({"seed": 1, "loras": [{"name": "ink"}]})
    with pytest.raises(ValueError, match="the LoRA ink"):
        report.replay(REQUEST)


def test_unknown_keys_are_kept() -> None:
    result = parse_result({"IMAGE": PIXELS, "INFO": info(seed=1, novelty={"a": [1]})}, REQUEST, 0.0)
    assert result.info.model_extra == {"novelty": {"a": [1]}}
    assert json.loads(result.info.model_dump_json())["novelty"] == {"a": [1]}


@pytest.mark.parametrize(("outputs", "missing"), [({"INFO": info(seed=1)}, "IMAGE"), ({"IMAGE": PIXELS}, "INFO")])
def test_missing_output_is_the_servers_failure(outputs: dict[str, np.ndarray], missing: str) -> None:
    with pytest.raises(ServerFailure, match=missing):
        parse_result(outputs, REQUEST, 0.0)


def test_progress() -> None:
    progress = parse_progress({"INFO": info(step=3, of=20), "IMAGE": None}, REQUEST)
    assert progress is not None
    assert (progress.step, progress.of, progress.preview) == (3, 20, None)
    assert parse_progress({"INFO": None, "IMAGE": None}, REQUEST) is None
    assert parse_progress({"INFO": info(seed=1), "IMAGE": PIXELS}, REQUEST) is None


def test_contact_sheet_holds_every_picture() -> None:
    colours = ["red", "lime", "blue", "yellow", "cyan"]
    sheet = contact_sheet([(Image.new("RGB", (64, 48), colour), f"{colour} " * 30) for colour in colours], columns=3)
    seen = {colour for _count, colour in sheet.getcolors(1 << 24) or ()}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)} <= seen
    assert min(map(sum, seen)) < 60  # captions
    assert sheet.width < 3 * 128 + 4 * 8 + 1


def test_contact_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
