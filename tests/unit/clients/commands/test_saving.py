"""What becomes of results on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swiftdiffusion.clients import GenerationInfo, GenerationRequest, GenerationResult
from swiftdiffusion.clients.commands.saving import of_suffix, save

REQUEST = GenerationRequest("a red circle", steps=3)
PIXELS = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)


def result(encoded: bytes | None = None) -> GenerationResult:
    return GenerationResult(PIXELS if encoded is None else None, encoded, GenerationInfo(seed=7), REQUEST, 0.5)


@pytest.mark.parametrize(
    ("name", "asked"),
    [("x.png", "png"), ("x.PNG", "png"), ("x.webp", "webp"), ("x.jpg", "jpeg"), ("x.jpeg", "jpeg"), ("x.tiff", None)],
)
def test_one_picture_is_asked_for_as_its_file(name: str, asked: str | None) -> None:
    assert [request.output_format for request in of_suffix(Path(name), [REQUEST])] == [asked]
    assert of_suffix(Path(name), [REQUEST, REQUEST]) == [REQUEST, REQUEST]


def test_a_file_is_written_as_it_came(tmp_path: Path) -> None:
    save(tmp_path / "new" / "x.png", [result(b"whatever the server sent")])
    assert (tmp_path / "new" / "x.png").read_bytes() == b"whatever the server sent"


@pytest.mark.parametrize("name", ["x.png", "x.tiff"])
def test_raw_pixels_are_encoded_here(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, [result()])
    assert np.array_equal(np.asarray(Image.open(tmp_path / name)), PIXELS)


def test_several_go_on_a_sheet(tmp_path: Path) -> None:
    save(tmp_path / "x.png", [result()] * 3)
    assert Image.open(tmp_path / "x.png").width > 3 * 6
