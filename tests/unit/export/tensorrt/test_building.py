"""What goes into a build: ONNX files read and fixed to sizes, profiles, and the commands where TensorRT is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="needs onnx")

import numpy as np
import onnx
import torch
from typer.testing import CliRunner

from engine_descriptions import described
from swiftdiffusion.clients.cli import app
from swiftdiffusion.export.tensorrt.graph import Graph, GraphError, fixed_shapes, names
from swiftdiffusion.export.tensorrt.profiles import Rows, input_shapes, parse_latents, parse_rows, profile

GRAPH = """
<ir_version: 10, opset_import: ["" : 18, "swiftdiffusion" : 1]>
unet_encoder (
    float16[rows, 4, height, width] latents, float[rows] timesteps, float16[rows, 77, 16] encoder_hidden_states,
    float16[8, 4, 1, 1] kernel
) => (float16[rows, 8, height, width] mid)
<float16[8, 4, 1, 1] kernel, float16[8] scale, float[2] small = {1, 2}>
{
    hidden = Conv (latents, kernel)
    mid = swiftdiffusion.GroupNormSiLU <groups = 2, eps = 0.00001> (hidden, scale, scale)
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
    return tmp_path


def test_what_a_file_says(directory: Path) -> None:
    graph = Graph.read(directory, "unet_encoder")
    assert graph.inputs == {
        "latents": ("rows", 4, "height", "width"),
        "timesteps": ("rows",),
        "encoder_hidden_states": ("rows", 77, 16),
    }
    assert graph.weights == {"kernel": (8, 4, 1, 1)}
    assert (graph.digest, graph.norms, graph.precision) == ("", "", "")
    assert graph.plugins == ("GroupNormSiLU",)
    assert sorted(graph.sources()) == ["unet_encoder.data", "unet_encoder.onnx"]
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


@pytest.mark.parametrize("weights", [["kernel"], []])
def test_what_tensorrt_reads(directory: Path, weights: list[str]) -> None:
    graph = Graph.read(directory, "unet_encoder")
    content = graph.for_engine(
        {"latents": (None, 4, 8, 16), "timesteps": (None,), "encoder_hidden_states": (None, 77, 16)}, weights
    )
    model = onnx.load_from_string(content)
    assert [value.name for value in model.graph.input] == [*graph.inputs, *weights]
    held = [tensor.name for tensor in model.graph.initializer]
    assert held == (["scale", "small"] if weights else ["kernel", "scale", "small"])
    fixed = Graph(graph.path, model)
    assert fixed.inputs["latents"] == ("rows", 4, 8, 16)
    assert fixed.inputs["timesteps"] == ("rows",)
    assert model.graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL
    assert graph.inputs["latents"] == ("rows", 4, "height", "width"), "the original is as it was"
    (default,) = graph.defaults(graph.weights).values()
    assert default.shape == (8, 4, 1, 1)
    assert default.min() == 1


@pytest.mark.parametrize(
    ("text", "rows"),
    [("1", [(1, 1, 1)]), ("1,2", [(1, 1, 1), (2, 2, 2)]), ("1:2:8,16", [(1, 2, 8), (16, 16, 16)])],
)
def test_rows(text: str, rows: list[tuple[int, int, int]]) -> None:
    assert list(parse_rows(text)) == rows


@pytest.mark.parametrize("text", ["", "0", "2:1:3", "1:2", "1, 2", "x", "1:2:3:4"])
def test_rows_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="rows are"):
        parse_rows(text)


def test_latents() -> None:
    assert parse_latents("128x96") == ((128, 96),) * 3
    assert parse_latents("4x8:128x96:256x96") == ((4, 8), (128, 96), (256, 96))


@pytest.mark.parametrize(
    "text", ["0x3", "8", "", "8x8:", "8x8:16x16", "8x8:16x16:32x32:64x64", "8x8:4x8:16x16", "8x8:16x32:16x16", " 8x8"]
)
def test_latents_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=f"latents are '{text}'; allowed"):
        parse_latents(text)


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
    fixed = profile(INPUTS, Rows(1, 2, 4), parse_latents("8x16"))
    assert fixed["latents"] == ((1, 4, 8, 16), (2, 4, 8, 16), (4, 4, 8, 16))
    assert fixed_shapes(fixed["latents"]) == (None, 4, 8, 16)
    assert fixed_shapes([fixed["latents"][1]]) == (2, 4, 8, 16)
    any_size = profile(INPUTS, Rows(1, 2, 4), parse_latents("4x4:8x16:32x16"))
    assert any_size["latents"] == ((1, 4, 4, 4), (2, 4, 8, 16), (4, 4, 32, 16))
    assert fixed_shapes(any_size["latents"]) == (None, 4, None, None)
    assert any_size["encoder_hidden_states"] == ((1, 77, 16), (2, 77, 16), (4, 77, 16))


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
    profiles = [profile(graph.inputs, rows, parse_latents("8x16")) for rows in parse_rows("1,1:2:4")]
    metadata = described("vae_decoder", *profiles, onnx=str(tmp_path))
    metadata.save(tmp_path)
    where = ["--onnx", str(tmp_path), "--engines", str(tmp_path), "--repository", str(tmp_path / "repository")]
    for change, said in (
        ({"weights": ("a.weight",)}, "takes weights as inputs; wanted: one built with --weights constant"),
        ({"runtime": "tensorrt-rtx"}, "the runtime is tensorrt, and the plan is for tensorrt-rtx"),
    ):
        metadata.model_copy(update=change).save(tmp_path)
        refused = CliRunner().invoke(app, ["plan-models", *where])
        assert refused.exit_code == 2
        assert said in _said(refused)
    metadata.save(tmp_path)
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
        (["--runtime", "trt"], "--runtime is trt; allowed: tensorrt, tensorrt-rtx"),
        (["--weights", "some"], "--weights is some; allowed: inputs, linear, constant"),
        (["--capability", "8.9"], "--capability is given; wanted with it:"),
        (["--runtime", "tensorrt-rtx", "--capability", "9.0"], "compute capability 9.0; allowed: 7.5, 8.0, 8.6, 8.9"),
        (["--runtime", "tensorrt-rtx", "--capability", "abc"], "compute capability abc; allowed: 7.5"),
        (["--network", "vae"], "has no ONNX file of vae; there: unet_encoder"),
    ],
)
def test_options_that_make_no_sense(directory: Path, options: list[str], message: str) -> None:
    asked = ["build-engines", "--onnx", str(directory), "--engines", str(directory / "out"), *options]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert message in _said(result)


def test_verifying_without_a_gpu(directory: Path) -> None:
    asked = ["verify-engines", "--engines", str(directory)]
    if not torch.cuda.is_available():
        result = CliRunner().invoke(app, asked)
        assert result.exit_code == 2
        assert "GPU 0 is wanted for engines" in _said(result)
    result = CliRunner().invoke(app, [*asked, "--loras", "some.safetensors"])
    assert result.exit_code == 2
    assert "--checkpoint" in _said(result)
