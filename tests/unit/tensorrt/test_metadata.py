"""Engines for other machines, releases and files are refused, with the command that builds them."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine_descriptions import described
from swiftdiffusion.python_backends.common.filesystem import sha256_of
from swiftdiffusion.python_backends.tensorrt.flavours import (
    TENSORRT,
    TENSORRT_RTX,
    Flavour,
    TensorRTUnavailableError,
    check_numpy,
    require_gpu,
)
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMetadata, EngineMismatchError, Machine
from swiftdiffusion.python_backends.tensorrt.shapes import EngineShapeError, choose_profile

H100 = Machine(gpu="NVIDIA H100 80GB HBM3", compute_capability="9.0", release="11.4.0.106")
L4 = Machine(gpu="NVIDIA L4", compute_capability="8.9", release="1.7.1.116")
PLAN = b"a plan"
PORTABLE = {
    "runtime": "tensorrt-rtx",
    "release": L4.release,
    "gpu": None,
    "capabilities": ("8.6", "8.9"),
    "plugins": (),
}


@pytest.fixture
def engine(tmp_path: Path) -> EngineMetadata:
    (tmp_path / "unet_encoder.plan").write_bytes(PLAN)
    (tmp_path / "unet_encoder.onnx").write_text("a graph")
    made = described(
        "unet_encoder",
        {"latents": ((1, 4, 128, 128), (2, 4, 128, 128), (4, 4, 128, 128))},
        weights=("conv_in.weight",),
        sources={"unet_encoder.onnx": sha256_of(tmp_path / "unet_encoder.onnx")},
        plan_sha256=hashlib.sha256(PLAN).hexdigest(),
        plugins=("GEGLU",),
        onnx="/models/onnx files",
        options=("--rows", "1:2:4", "--latents", "128x128"),
    )
    made.save(tmp_path)
    return made


def test_it_is_read_as_it_was_written(engine: EngineMetadata, tmp_path: Path) -> None:
    assert EngineMetadata.read(tmp_path, "unet_encoder") == engine
    assert engine.check(tmp_path, TENSORRT, H100, "abc") == tmp_path / "unet_encoder.plan"
    engine.check_sources(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpu": "NVIDIA H200"}, "the GPU is 'NVIDIA H200' here, and the plan was built for 'NVIDIA H100 80GB HBM3'"),
        ({"compute_capability": "10.0"}, "the GPU's compute capability is 10.0, and the plan was built for 9.0"),
        ({"release": "11.5.0.1"}, "TensorRT is 11.5.0.1 here, and the plan is 11.4.0.106's"),
    ],
    ids=str,
)
def test_another_machine_is_refused(engine: EngineMetadata, tmp_path: Path, change: dict[str, str], said: str) -> None:
    with pytest.raises(EngineMismatchError) as refused:
        engine.check(tmp_path, TENSORRT, replace(H100, **change))
    command = (
        f"swiftdiffusion build-engines --onnx '/models/onnx files' --engines {tmp_path} --rows 1:2:4 --latents 128x128"
    )
    assert str(refused.value) == f"engine unet_encoder: {said}; build it anew: {command}"


def test_another_checkpoint_and_another_runtime_are_refused(engine: EngineMetadata, tmp_path: Path) -> None:
    with pytest.raises(
        EngineMismatchError,
        match=r"another checkpoint.*export-onnx.*build-engines --onnx ONNX_DIRECTORY",
    ):
        engine.check(tmp_path, TENSORRT, H100, "another")
    with pytest.raises(
        EngineMismatchError, match="the runtime is tensorrt-rtx, and the plan is for tensorrt; build"
    ) as said:
        engine.check(tmp_path, TENSORRT_RTX, L4)
    assert str(said.value).endswith("--latents 128x128 --runtime tensorrt-rtx")


def test_the_command_has_what_is_wanted_in_the_place_of_what_was_asked(engine: EngineMetadata, tmp_path: Path) -> None:
    options = ("--runtime", "tensorrt-rtx", "--rows", "1", "--capability", "8.6", "--capability", "8.9", "--no-plugins")
    portable = engine.model_copy(update=PORTABLE | {"options": options})
    with pytest.raises(EngineMismatchError) as said:
        portable.check(tmp_path, TENSORRT_RTX, replace(L4, compute_capability="12.0"))
    assert str(said.value).endswith("--runtime tensorrt-rtx --rows 1 --no-plugins --capability 12.0")


def test_a_description_of_another_engine_is_refused(engine: EngineMetadata, tmp_path: Path) -> None:
    (tmp_path / "unet_decoder.json").write_text((tmp_path / "unet_encoder.json").read_text())
    with pytest.raises(EngineMismatchError, match=r"unet_decoder\.json describes the engine 'unet_encoder'; build it"):
        EngineMetadata.read(tmp_path, "unet_decoder")


def test_a_gpu_that_the_package_does_not_know_is_refused_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda gpu: "NVIDIA H100")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda gpu: (9, 0))
    with pytest.raises(TensorRTUnavailableError, match=r"capability 9\.0; .*served by --runtime torch"):
        Machine.here(TENSORRT_RTX, 0)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda gpu: (8, 9))
    assert Machine.here(TENSORRT_RTX, 0).compute_capability == "8.9"


@pytest.mark.parametrize(
    ("built", "runs", "refuses"),
    [
        (("8.6", "8.9"), ("8.6", "8.9"), ("8.0", "12.0", "9.0")),
        ((), ("8.0", "8.6", "8.9", "12.0", "12.1", "13.0"), ("7.5", "9.0", "10.0")),
    ],
)
def test_one_for_several_kinds_of_gpus(
    engine: EngineMetadata, tmp_path: Path, built: tuple[str, ...], runs: tuple[str, ...], refuses: tuple[str, ...]
) -> None:
    portable = engine.model_copy(update=PORTABLE | {"capabilities": built})
    for capability in runs:
        portable.check(tmp_path, TENSORRT_RTX, replace(L4, compute_capability=capability))
    for capability in refuses:
        with pytest.raises(EngineMismatchError, match=f"capability is {capability}, and the plan was built for 8"):
            portable.check(tmp_path, TENSORRT_RTX, replace(L4, compute_capability=capability))


def test_a_changed_or_missing_plan_is_refused(engine: EngineMetadata, tmp_path: Path) -> None:
    (tmp_path / "unet_encoder.plan").write_bytes(b"another")
    with pytest.raises(EngineMismatchError, match=r"unet_encoder\.plan is not the file.*build-engines"):
        engine.check(tmp_path, TENSORRT, H100)
    (tmp_path / "unet_encoder.plan").unlink()
    with pytest.raises(EngineMismatchError, match=r"unet_encoder\.plan is missing.*build-engines"):
        engine.check(tmp_path, TENSORRT, H100)


def test_a_server_needs_no_onnx_file(engine: EngineMetadata, tmp_path: Path) -> None:
    (tmp_path / "unet_encoder.onnx").write_text("another graph")
    engine.check(tmp_path, TENSORRT, H100)
    with pytest.raises(EngineMismatchError, match=r"unet_encoder\.onnx is not the file that the plan was built from"):
        engine.check_sources(tmp_path, tmp_path)
    (tmp_path / "unet_encoder.onnx").unlink()
    with pytest.raises(EngineMismatchError, match=r"unet_encoder\.onnx is missing"):
        engine.check_sources(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the text: .*JSON"),
        (b"\xff\xfe{}", "the text: .*JSON"),
        ('{"name": 3}', "name: .*string"),
        ('{"runtime": "trt"}', "runtime is 'trt'; known: tensorrt, tensorrt-rtx"),
        ('{"profiles": []}', "profiles: "),
        (None, r"unet_encoder\.json is missing"),
    ],
)
def test_an_unreadable_description_is_refused(
    engine: EngineMetadata, tmp_path: Path, text: str | bytes | None, message: str
) -> None:
    path = tmp_path / "unet_encoder.json"
    said = json.loads(path.read_text())
    path.unlink()
    if isinstance(text, bytes):
        path.write_bytes(text)
    elif text is not None:
        path.write_text(text if text == "{" else json.dumps(said | json.loads(text)))
    with pytest.raises(EngineMismatchError, match=f"{message}.*swiftdiffusion build-engines"):
        EngineMetadata.read(tmp_path, "unet_encoder")


@pytest.mark.parametrize(
    ("flavour", "release"),
    [(TENSORRT, each) for each in ("10.16.1.11", "10.16.2.3", "11.4.0.106", "11.5", "12.0.0")]
    + [(TENSORRT_RTX, each) for each in ("1.7.0", "1.7.1.116")],
    ids=str,
)
def test_releases_that_are_used(flavour: Flavour, release: str) -> None:
    flavour.check_release(release)


@pytest.mark.parametrize(
    ("flavour", "release"),
    [(TENSORRT, each) for each in ("11.3.0.99", "10.15.1.29", "11.0.0.114", "8.6.1", "dev")]
    + [(TENSORRT_RTX, each) for each in ("1.6.1.120", "1.8.0", "11.4.0.106", "")],
    ids=str,
)
def test_releases_that_are_not(flavour: Flavour, release: str) -> None:
    with pytest.raises(TensorRTUnavailableError, match=f"{flavour.title} is '{release}'; wanted: .*; pip install"):
        flavour.check_release(release)


def test_gpus_that_a_package_does_not_know() -> None:
    for capability in ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1", "13.0"):
        TENSORRT_RTX.check_capability(capability)
    for capability in ("7.0", "8.7", "9.0", "10.0", "10.3", "11.0"):
        TENSORRT.check_capability(capability)
        with pytest.raises(TensorRTUnavailableError) as refused:
            TENSORRT_RTX.check_capability(capability)
        assert f"TensorRT-RTX has no engines for GPUs of compute capability {capability}" in str(refused.value)
        assert "served by --runtime torch" in str(refused.value)


def test_a_numpy_under_which_plugins_fail() -> None:
    for release, numpy in (("10.16.1.11", "1.26.4"), ("10.16.1.11", "2.3.5"), ("11.4.0.106", "2.5.2")):
        check_numpy(release, numpy)
    with pytest.raises(TensorRTUnavailableError, match=r"10\.16\.1\.11 fails under numpy 2\.5\.2; wanted: numpy<2\.4"):
        check_numpy("10.16.1.11", "2.5.2")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for flavour, wanted in (
        (TENSORRT, "'tensorrt-cu13>=11.4'"),
        (TENSORRT_RTX, r"'swiftdiffusion\[onnx,tensorrt-rtx\]'"),
    ):
        monkeypatch.setitem(sys.modules, flavour.package, None)
        with pytest.raises(TensorRTUnavailableError, match=f"{flavour.title} is missing.*pip install {wanted}"):
            flavour.require()
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
