"""Engines for other machines, releases and files are refused, with the command that builds them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from swiftdiffusion.python_backends.common.filesystem import sha256_of
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMetadata, EngineMismatchError, Machine
from swiftdiffusion.python_backends.tensorrt.shapes import EngineShapeError, choose_profile
from swiftdiffusion.python_backends.tensorrt.versions import (
    TensorRTUnavailableError,
    check_numpy,
    check_version,
    require_gpu,
    require_tensorrt,
)

MACHINE = Machine(gpu="NVIDIA H100 80GB HBM3", compute_capability="9.0", tensorrt="11.4.0.106")
PLAN = b"a plan"


@pytest.fixture
def engine(tmp_path: Path) -> EngineMetadata:
    (tmp_path / "unet_encoder.plan").write_bytes(PLAN)
    (tmp_path / "unet_encoder.onnx").write_text("a graph")
    (tmp_path / "unet_encoder.weights.json").write_text("{}")
    sources = ("unet_encoder.onnx", "unet_encoder.weights.json")
    made = EngineMetadata(
        name="unet_encoder",
        gpu=MACHINE.gpu,
        compute_capability=MACHINE.compute_capability,
        tensorrt=MACHINE.tensorrt,
        driver="580.159",
        torch="2.13.0",
        triton="3.9.0",
        precision="float16",
        profiles=({"latents": ((1, 4, 128, 128), (2, 4, 128, 128), (4, 4, 128, 128))},),
        sources={name: sha256_of(tmp_path / name) for name in sources},
        plan_sha256=hashlib.sha256(PLAN).hexdigest(),
        plugins=("GEGLU",),
        refittable=("a.weight.T",),
        onnx="/models/onnx files",
        options=("--rows", "1:2:4", "--latents", "128x128"),
    )
    made.save(tmp_path)
    return made


def test_it_is_read_as_it_was_written(engine: EngineMetadata, tmp_path: Path) -> None:
    assert EngineMetadata.read(tmp_path, "unet_encoder") == engine
    assert engine.check(tmp_path, MACHINE) == tmp_path / "unet_encoder.plan"
    engine.check_sources(tmp_path)


@pytest.mark.parametrize(
    "change", [{"gpu": "NVIDIA H200"}, {"compute_capability": "10.0"}, {"tensorrt": "11.5.0.1"}], ids=str
)
def test_another_machine_is_refused(engine: EngineMetadata, tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(EngineMismatchError) as refused:
        engine.check(tmp_path, replace(MACHINE, **change))
    ((field, found),) = change.items()
    command = (
        f"swiftdiffusion build-engines --onnx '/models/onnx files' --engines {tmp_path} --rows 1:2:4 --latents 128x128"
    )
    expected = f"{field} is '{found}' here, and the plan was built for '{getattr(engine, field)}'; build it here: "
    assert str(refused.value) == f"engine unet_encoder: {expected}{command}"


@pytest.mark.parametrize("name", ["unet_encoder.plan", "unet_encoder.weights.json"])
def test_a_changed_or_missing_file_is_refused(engine: EngineMetadata, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"another")
    with pytest.raises(EngineMismatchError, match=f"{name} (is not the file|has changed).*build-engines"):
        engine.check(tmp_path, MACHINE)
    (tmp_path / name).unlink()
    with pytest.raises(EngineMismatchError, match=f"{name} is missing.*build-engines"):
        engine.check(tmp_path, MACHINE)


def test_an_engine_without_refitting_needs_no_weight_map(engine: EngineMetadata, tmp_path: Path) -> None:
    (tmp_path / "unet_encoder.weights.json").unlink()
    engine.model_copy(update={"refittable": ()}).check(tmp_path, MACHINE)


def test_a_server_needs_no_onnx_file(engine: EngineMetadata, tmp_path: Path) -> None:
    (tmp_path / "unet_encoder.onnx").write_text("another graph")
    engine.check(tmp_path, MACHINE)
    with pytest.raises(EngineMismatchError, match=r"unet_encoder\.onnx has changed"):
        engine.check_sources(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "the text: .*JSON"), ('{"name": 3}', "name: .*string"), (None, r"unet_encoder\.json is missing")],
)
def test_an_unreadable_description_is_refused(
    engine: EngineMetadata, tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "unet_encoder.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(EngineMismatchError, match=f"{message}.*swiftdiffusion build-engines"):
        EngineMetadata.read(tmp_path, "unet_encoder")


@pytest.mark.parametrize("version", ["10.16.1.11", "10.16.2.3", "11.4.0.106", "11.5", "12.0.0"])
def test_releases_that_are_used(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("11.3.0.99", "may drop the biases"),
        ("10.15.1.29", "interface"),
        ("10.17.0", "interface"),
        ("11.0.0.114", "interface"),
        ("8.6.1", "interface"),
        ("dev", "release is 'dev'"),
    ],
)
def test_releases_that_are_not(version: str, reason: str) -> None:
    with pytest.raises(TensorRTUnavailableError, match=f"{reason}.*wanted: 10.16 or at least 11.4; pip install"):
        check_version(version)


def test_a_numpy_under_which_plugins_fail() -> None:
    for release, numpy in (("10.16.1.11", "1.26.4"), ("10.16.1.11", "2.3.5"), ("11.4.0.106", "2.5.2")):
        check_numpy(release, numpy)
    with pytest.raises(TensorRTUnavailableError, match=r"10\.16\.1\.11 fails under numpy 2\.5\.2; wanted: numpy<2\.4"):
        check_numpy("10.16.1.11", "2.5.2")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(TensorRTUnavailableError, match=r"TensorRT is missing.*pip install 'tensorrt-cu13.*a GPU"):
        require_tensorrt()
    with pytest.raises(TensorRTUnavailableError, match="GPU 99 is wanted"):
        require_gpu(99)


ONE = {"latents": ((1, 4, 8, 8),) * 3, "timesteps": ((1,),) * 3}
TWO = {"latents": ((2, 4, 8, 8),) * 3, "timesteps": ((2,),) * 3}
UP_TO_FOUR = {
    "latents": ((1, 4, 8, 8), (3, 4, 8, 8), (4, 4, 8, 8)),
    "timesteps": ((1,), (3,), (4,)),
}


@pytest.mark.parametrize(("rows", "index"), [(1, 1), (2, 2), (3, 0), (4, 0)])
def test_the_profile_made_for_a_shape_is_preferred(rows: int, index: int) -> None:
    shapes = {"latents": (rows, 4, 8, 8), "timesteps": (rows,)}
    assert choose_profile(shapes, [UP_TO_FOUR, ONE, TWO]) == index


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"latents": (5, 4, 8, 8), "timesteps": (1,)}, r"latents is \[5, 4, 8, 8\]; .* \[1, 4, 8, 8\], \[2, 4, 8, 8\]"),
        ({"latents": (1, 4, 8, 8), "timesteps": (2,)}, "fit no one profile"),
        ({"latents": (1, 4, 8), "timesteps": (1,)}, r"latents is \[1, 4, 8\]"),
        ({"latents": (1, 4, 8, 8)}, r"the inputs are \['latents'\]; this engine takes"),
    ],
)
def test_shapes_that_no_profile_holds(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(EngineShapeError, match=message):
        choose_profile(shapes, [ONE, TWO])
