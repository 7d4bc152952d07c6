"""What comes back is parsed, and unknown things are kept."""

import json

import numpy as np
import pytest
from PIL import Image

from swiftdiffusion.clients import ServerFailure
from swiftdiffusion.clients.contact_sheet import contact_sheet
from swiftdiffusion.clients.result import parse_progress, parse_result

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(1, 4, 6, 3)


def info(**values: object) -> np.ndarray:
    return np.array([[json.dumps(values).encode()]], dtype=object)


def test_result_is_typed_and_the_picture_lazy() -> None:
    lora = {"name": "papercut", "scale": 0.8, "patched_at_step": 2, "source": "disk", "modules": 140, "format": "kohya"}
    report = info(
        seed=7, steps=4, scheduler="euler", loras=[lora], shards=["unet_shard0"], timings_ms={"denoiser": 1.5}
    )
    result = parse_result({"IMAGE": PIXELS, "INFO": report}, "mine", 0.5)
    assert (result.info.seed, result.info.steps, result.info.scheduler) == (7, 4, "euler")
    assert result.info.loras[0].patched_at_step == 2
    assert result.info.loras[0].model_extra == {"format": "kohya"}
    assert result.info.timings_ms == {"denoiser": 1.5}
    assert "image" not in vars(result)
    assert isinstance(result.image, Image.Image)
    assert result.image is result.image
    assert (np.asarray(result.image) == PIXELS[0]).all()


def test_unknown_keys_are_kept() -> None:
    result = parse_result({"IMAGE": PIXELS, "INFO": info(seed=1, novelty={"a": [1]})}, "", 0.0)
    assert result.info.model_extra == {"novelty": {"a": [1]}}
    assert json.loads(result.info.model_dump_json())["novelty"] == {"a": [1]}


@pytest.mark.parametrize(("outputs", "missing"), [({"INFO": info(seed=1)}, "IMAGE"), ({"IMAGE": PIXELS}, "INFO")])
def test_missing_output_is_the_servers_failure(outputs: dict[str, np.ndarray], missing: str) -> None:
    with pytest.raises(ServerFailure, match=missing):
        parse_result(outputs, "", 0.0)


def test_progress() -> None:
    progress = parse_progress({"INFO": info(step=3, of=20), "IMAGE": None})
    assert progress is not None
    assert (progress.step, progress.of) == (3, 20)
    assert parse_progress({"INFO": None, "IMAGE": None}) is None


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
