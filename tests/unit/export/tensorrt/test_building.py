"""What goes into a build: ONNX files read and fixed to sizes, profiles, and the commands where TensorRT is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="needs onnx")

import numpy as np
import onnx
from typer.testing import CliRunner

from swiftdiffusion.clients.cli import app
from swiftdiffusion.export.tensorrt.graph import Graph, GraphError, fixed_shapes, names
from swiftdiffusion.export.tensorrt.profiles import Rows, input_shapes, parse_latents, parse_rows, profile
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMetadata

GRAPH = """
<ir_version: 10, opset_import: ["" : 18, "swiftdiffusion" : 1]>
unet_encoder (
    float16[rows, 4, height, width] latents, float[rows] timesteps, float16[rows, 77, 16] encoder_hidden_states
) => (float16[rows, 8, height, width] mid)
<float16[8, 4, 1, 1] kernel, float16[8] scale, float[2] small = {1, 2}>
{
    hidden = Conv (latents, kernel)
    mid = swiftdiffusion.GroupNormSiLU <groups = 2, eps = 0.00001, silu = 1> (hidden, scale, scale)
}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An encoder with its weights in another file."""
    model = onnx.parser.parse_model(GRAPH)
    del model.graph.initializer[:]
    for name, shape in (("kernel", (8, 4, 1, 1)), ("scale", (8,))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float16), name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "small"))
    onnx.save(
        model,
        tmp_path / "unet_encoder.onnx",
        save_as_external_data=True,
        location="unet_encoder.data",
        size_threshold=0,
    )
    (tmp_path / "unet_encoder.weights.json").write_text("{}")
    return tmp_path


def test_what_a_file_says(directory: Path) -> None:
    graph = Graph.read(directory, "unet_encoder")
    assert graph.inputs == {
        "latents": ("rows", 4, "height", "width"),
        "timesteps": ("rows",),
        "encoder_hidden_states": ("rows", 77, 16),
    }
    assert graph.precision == "float16"
    assert graph.plugins == ("GroupNormSiLU",)
    assert sorted(graph.sources()) == ["unet_encoder.data", "unet_encoder.onnx", "unet_encoder.weights.json"]
    assert names(directory) == ["unet_encoder"]


def test_files_that_are_missing_or_broken(directory: Path) -> None:
    with pytest.raises(GraphError, match=r"no vae_decoder\.onnx; networks there: unet_encoder"):
        Graph.read(directory, "vae_decoder")
    (directory / "broken.onnx").write_bytes(b"\x08\xff")
    with pytest.raises(GraphError, match=r"broken\.onnx is not ONNX"):
        Graph.read(directory, "broken")
    (directory / "unet_encoder.data").unlink()
    with pytest.raises(GraphError, match=r"unet_encoder\.data, which is missing"):
        Graph.read(directory, "unet_encoder").sources()


def test_sizes_are_written_into_the_file(directory: Path) -> None:
    graph = Graph.read(directory, "unet_encoder")
    content = graph.with_shapes(
        {"latents": (None, 4, 8, 16), "timesteps": (None,), "encoder_hidden_states": (None, 77, 16)}
    )
    model = onnx.load_from_string(content)
    fixed = Graph(graph.path, model)
    assert fixed.inputs["latents"] == ("rows", 4, 8, 16)
    assert fixed.inputs["timesteps"] == ("rows",)
    assert model.graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL
    assert graph.inputs["latents"] == ("rows", 4, "height", "width"), "the original is as it was"


@pytest.mark.parametrize(
    ("text", "rows"),
    [("1", [(1, 1, 1)]), ("1,2", [(1, 1, 1), (2, 2, 2)]), ("1:2:8,16", [(1, 2, 8), (16, 16, 16)])],
)
def test_rows(text: str, rows: list[tuple[int, int, int]]) -> None:
    assert [each.all for each in parse_rows(text)] == rows


@pytest.mark.parametrize("text", ["", "0", "2:1:3", "1:2", "1, 2", "x", "1:2:3:4"])
def test_rows_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="rows are"):
        parse_rows(text)


def test_latents() -> None:
    assert parse_latents("128x96") == (128, 96)
    with pytest.raises(ValueError, match="latents are '0x3'; allowed"):
        parse_latents("0x3")


INPUTS = {
    "latents": ("rows", 4, "height", "width"),
    "timesteps": ("rows",),
    "encoder_hidden_states": ("rows", 77, 16),
}


def test_shapes_of_inputs() -> None:
    assert input_shapes(INPUTS, 2, (8, 16)) == {
        "latents": (2, 4, 8, 16),
        "timesteps": (2,),
        "encoder_hidden_states": (2, 77, 16),
    }
    derived = {"mid": ("rows", 8, "height/4", "width/4"), "picture": ("rows", 3, "8*height", "8*width")}
    assert input_shapes(derived, 1, (8, 16)) == {"mid": (1, 8, 2, 4), "picture": (1, 3, 64, 128)}
    assert input_shapes({"latents": (2, 4, 64, 64)}, 2, None) == {"latents": (2, 4, 64, 64)}


@pytest.mark.parametrize(
    ("inputs", "latents", "message"),
    [
        ({"latents": ("rows", 4, "height", "width")}, None, "latents has an open height.*give the latents' size"),
        ({"mid": ("rows", 4, "height/4", 8)}, (6, 8), "mid has height/4 cells; wanted: .* multiple of 4"),
        ({"input_ids": ("rows", "s21")}, None, "a dimension of input_ids is 's21' in the ONNX file; known: rows"),
        ({"latents": (1, 4, 64, 64)}, None, "latents has 1 rows in the ONNX file; 2 are wanted"),
    ],
)
def test_shapes_that_stay_open_or_contradict(
    inputs: dict[str, tuple[int | str, ...]], latents: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        input_shapes(inputs, 2, latents)


def test_only_what_varies_stays_open() -> None:
    of_rows = {rows: input_shapes(INPUTS, rows, (8, 16)) for rows in (1, 2, 4)}
    assert profile(of_rows, Rows(1, 2, 4))["latents"] == ((1, 4, 8, 16), (2, 4, 8, 16), (4, 4, 8, 16))
    assert fixed_shapes([shapes["latents"] for shapes in of_rows.values()]) == (None, 4, 8, 16)
    assert fixed_shapes([of_rows[2]["latents"]]) == (2, 4, 8, 16)


VAE = """
<ir_version: 10, opset_import: ["" : 18]>
vae_decoder (float16[rows, 4, height, width] latents) => (
    float[rows, 4, height, width] image, float[rows, unknown] more
)
{ image = Cast <to = 1> (latents) more = Identity (image) }
"""


def test_a_model_that_triton_serves_by_itself(tmp_path: Path) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    onnx.save(onnx.parser.parse_model(VAE), tmp_path / "vae_decoder.onnx")
    (tmp_path / "vae_decoder.plan").write_bytes(b"plan")
    graph = Graph.read(tmp_path, "vae_decoder")
    of_rows = {rows: input_shapes(graph.inputs, rows, (8, 16)) for rows in (1, 2, 4)}
    metadata = EngineMetadata(
        name="vae_decoder",
        gpu="a GPU",
        compute_capability="9.0",
        tensorrt="11.4.0",
        driver="580.1",
        torch="2.13.0",
        triton=None,
        precision="float16",
        profiles=tuple(profile(of_rows, rows) for rows in parse_rows("1,1:2:4")),
        sources={},
        plan_sha256="",
        plugins=(),
        refittable=(),
        onnx=str(tmp_path),
        options=(),
    )
    metadata.save(tmp_path)
    where = ["--onnx", str(tmp_path), "--engines", str(tmp_path), "--repository", str(tmp_path / "repository")]
    result = CliRunner().invoke(app, ["plan-models", *where, "--gpu", "1"])
    assert result.exit_code == 0, result.output
    assert CliRunner().invoke(app, ["plan-models", *where]).exit_code == 2, "it is not empty any more"
    written = tmp_path / "repository" / "vae_decoder"
    assert (written / "1" / "model.plan").read_bytes() == b"plan"
    read = text_format.Parse((written / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (read.name, read.platform, read.max_batch_size) == ("vae_decoder", "tensorrt_plan", 4)
    assert [(each.name, list(each.dims)) for each in read.input] == [("latents", [4, 8, 16])]
    assert [(each.name, list(each.dims)) for each in read.output] == [("image", [4, 8, 16]), ("more", [-1])]
    assert read.input[0].data_type == model_config_pb2.TYPE_FP16
    assert read.output[0].data_type == model_config_pb2.TYPE_FP32
    assert list(read.instance_group[0].profile) == ["0", "1"]
    assert list(read.instance_group[0].gpus) == [1]


def _without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)


def _said(result: object) -> str:
    return " ".join(result.output.split())  # type: ignore[attr-defined]


def test_building_without_tensorrt(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_tensorrt(monkeypatch)
    asked = ["build-engines", "--onnx", str(directory), "--engines", str(directory / "out"), "--latents", "8x8"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert "pip install 'tensorrt-cu13" in _said(result) or "GPU 0 is wanted" in _said(result)
    assert not (directory / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "0"], "rows are '0'"),
        (["--latents", "8"], "latents are '8'"),
        (["--network", "vae"], "has no ONNX file of vae; there: unet_encoder"),
    ],
)
def test_options_that_make_no_sense(directory: Path, options: list[str], message: str) -> None:
    asked = ["build-engines", "--onnx", str(directory), "--engines", str(directory / "out"), *options]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert message in _said(result)


def test_verifying_without_tensorrt(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_tensorrt(monkeypatch)
    asked = ["verify-engines", "--onnx", str(directory), "--engines", str(directory)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert "pip install 'tensorrt-cu13" in _said(result)
    result = CliRunner().invoke(app, [*asked, "--loras", "some.safetensors"])
    assert result.exit_code == 2
    assert "--checkpoint" in _said(result)
