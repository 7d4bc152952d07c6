"""Deployments as TOML files: several pipelines, what they share, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from safetensors.torch import save_file
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

import checkpoints
from swiftdiffusion.clients.cli import app
from swiftdiffusion.export.repository.controlnet_placement import DeploymentError
from swiftdiffusion.export.repository.deployment import Deployment

TWO = """
[pipelines.first]
checkpoint = "first"
unet_shards = 3
unet_gpus = [0, 1]
vae_gpu = 1

[pipelines.second]
checkpoint = "second"
unet_shards = 1
unet_gpus = [2]
text_encoder_gpu = 0

[pipelines.old]
checkpoint = "old"

[controlnets.edges]
path = "edges"
gpus = [3]

[controlnets.pose]
path = "pose"
url = "grpc://10.0.0.2:8001"

[controlnets.old_edges]
path = "old_edges"
processes = 2
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two SDXL checkpoints that differ in their UNets, one of SD 1.5, and ControlNets for them."""
    directory = tmp_path_factory.mktemp("files")
    first, old = checkpoints.sdxl(directory / "first"), checkpoints.sd15(directory / "old")
    checkpoints.sdxl(directory / "second", unet_seed=1)
    for name in ("edges", "pose"):
        checkpoints.controlnet(first, directory / name, 0)
    checkpoints.controlnet(old, directory / "old_edges", 0)
    return directory


def export(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and output of the command, on one line."""
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


def configs(repository: Path) -> dict[str, model_config_pb2.ModelConfig]:
    return {
        file.parent.name: text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
        for file in repository.glob("*/config.pbtxt")
    }


@pytest.fixture(scope="module")
def written(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, model_config_pb2.ModelConfig]:
    (files / "deployment.toml").write_text(TWO)
    repository = tmp_path_factory.mktemp("repositories") / "r"
    code, output = export("--deployment", files / "deployment.toml", "--repository", repository)
    assert code == 0, output
    return configs(repository)


def parameter(config: model_config_pb2.ModelConfig, name: str) -> str:
    return str(config.parameters[name].string_value)


def test_pipelines_have_models_of_their_own_and_share_the_rest(
    written: dict[str, model_config_pb2.ModelConfig],
) -> None:
    own = {"preprocess", "lora_store", "denoiser", "denoiser_stream", "unet_shard0"}
    own |= {"vae_encoder", "vae_decoder"}
    models = {f"{pipeline}_{name}" for pipeline in ("first", "second", "old") for name in own}
    models |= {f"first_unet_shard{index}" for index in (1, 2)} | {"old_unet_shard1"}
    models |= {"first", "first_stream", "second", "second_stream", "old", "old_stream"}
    models |= {"controlnet_edges", "controlnet_old_edges", "control_images", "pipelines", "cancel"}
    models |= {"first_text_encoder", "old_text_encoder"}
    assert set(written) == models
    assert parameter(written["second_denoiser"], "text_encoder") == "first_text_encoder"
    assert [step.model_name for step in written["second"].ensemble_scheduling.step][1] == "first_text_encoder"
    assert parameter(written["second_unet_shard0"], "lora_store") == "second_lora_store"


def test_text_encoders_that_have_read_embeddings_are_shared_within_their_catalogue(files: Path, tmp_path: Path) -> None:
    for name in ("plain", "taught"):
        (tmp_path / name).mkdir()
    save_file({"clip_l": torch.ones(1, 16), "clip_g": torch.ones(1, 24)}, tmp_path / "taught" / "toy.safetensors")
    pipelines = {"first": "plain", "second": "plain", "third": "taught", "fourth": "taught"}
    deployment = tmp_path / "deployment.toml"
    deployment.write_text(
        "".join(
            f'[pipelines.{name}]\ncheckpoint = "{files / "first"}"\nloras = "{tmp_path / loras}"\n'
            for name, loras in pipelines.items()
        )
    )
    code, output = export("--deployment", deployment, "--repository", tmp_path / "r")
    assert code == 0, output
    made = configs(tmp_path / "r")
    used = [parameter(made[f"{name}_denoiser"], "text_encoder") for name in pipelines]
    assert used == [*["first_text_encoder"] * 2, *["third_text_encoder"] * 2]
    assert parameter(made["third_text_encoder"], "loras").endswith("taught")


def test_everything_runs_where_it_was_put(written: dict[str, model_config_pb2.ModelConfig]) -> None:
    groups = {name: config.instance_group[0] for name, config in written.items() if config.instance_group}
    placed = {name: (list(group.gpus), group.count) for name, group in groups.items()}
    assert [placed[f"first_unet_shard{index}"] for index in range(3)] == [([0], 1), ([1], 1), ([0], 1)]
    assert placed["first_vae_decoder"] == ([1], 1)
    assert placed["second_unet_shard0"] == placed["second_vae_decoder"] == ([2], 1)
    assert placed["controlnet_edges"] == ([3], 1)
    assert placed["controlnet_old_edges"] == ([], 2)
    residuals = {name: written[name].output[0].data_type for name in ("controlnet_edges", "controlnet_old_edges")}
    assert residuals["controlnet_edges"] == model_config_pb2.TYPE_FP16
    assert residuals["controlnet_old_edges"] == model_config_pb2.TYPE_FP32


def test_a_pipeline_knows_the_controlnets_that_fit_it(written: dict[str, model_config_pb2.ModelConfig]) -> None:
    known = {name: parameter(written[f"{name}_preprocess"], "controlnets") for name in ("first", "second", "old")}
    assert known["first"] == known["second"]
    assert '"edges"' in known["first"]
    assert '"pose"' in known["first"]
    assert "old_edges" not in known["first"]
    assert '"old_edges"' in known["old"]
    assert '"edges"' not in known["old"]
    assert parameter(written["first_unet_shard0"], "controlnet_urls") == '{"pose": "grpc://10.0.0.2:8001"}'
    assert written["controlnet_edges"].max_batch_size == 2 * 8 * (3 + 1)


def test_controlnets_alone_are_for_other_servers(files: Path, tmp_path: Path) -> None:
    code, _ = export(
        *("--checkpoint", files / "first", "--repository", tmp_path / "r", "--only-controlnets"),
        *("--controlnet", f"edges={files / 'edges'}"),
    )
    assert code == 0
    assert set(configs(tmp_path / "r")) == {"controlnet_edges", "control_images"}
    elsewhere = ("--controlnet", f"edges={files / 'edges'}@grpc://10.0.0.2:8001")
    for given in ((), elsewhere):
        code, said = export(
            "--checkpoint", files / "first", "--repository", tmp_path / "r", "--only-controlnets", *given
        )
        assert (code, "no ControlNet of these runs on this server" in said) == (2, True)
    assert (tmp_path / "r" / "controlnet_edges").is_dir()


@pytest.mark.parametrize("runtime", ["torch", "compile"])
def test_processes_import_what_they_need_alone_where_nothing_is_compiled(
    files: Path, tmp_path: Path, runtime: str
) -> None:
    (tmp_path / "loras").mkdir()
    networks = ("--checkpoint", files / "first", "--unet-shards", 1, "--controlnet", f"edges={files / 'edges'}")
    options = ("--loras", tmp_path / "loras", "--runtime", runtime, "--repository", tmp_path / "repository")
    status, said = export(*networks, *options)
    assert status == 0, said
    starts = {file.parts[-3]: re.search(r"import_\w+(?=\(\))", file.read_text()) for file in tmp_path.rglob("model.py")}
    lean = dict.fromkeys(("vae_encoder", "vae_decoder", "lora_store"), "import_diffusers") | {
        "text_encoder": "import_pipelines"
    }
    compiled = dict.fromkeys(("unet_shard0", "controlnet_edges"), "import_diffusers")
    found = {model: match[0] for model, match in starts.items() if match}
    assert found == (lean if runtime == "compile" else lean | compiled)


def test_what_runs_on_a_gpu_is_float16_and_float32_on_the_cpu(files: Path, tmp_path: Path) -> None:
    placed = (f"gpu={files / 'edges'}@0", f"cpu={files / 'edges'}")
    options = [text for each in placed for text in ("--controlnet", each)]
    assert export("--checkpoint", files / "first", "--repository", tmp_path / "r", "--vae-gpu", "0", *options)[0] == 0
    models = configs(tmp_path / "r")
    assert parameter(models["vae_decoder"], "vae_float16") == "0"
    found = {name: parameter(config, "dtype") for name, config in models.items() if "dtype" in config.parameters}
    assert found == {
        **dict.fromkeys(("vae_encoder", "vae_decoder", "controlnet_gpu"), "float16"),
        **dict.fromkeys(("text_encoder", "unet_shard0", "unet_shard1", "controlnet_cpu"), "float32"),
    }


def test_a_vae_in_float16_takes_less_memory(files: Path, tmp_path: Path) -> None:
    place = ("--checkpoint", files / "first", "--vae-gpu", "0", "--repository")
    assert export(*place, tmp_path / "plain")[0] == 0
    assert export(*place, tmp_path / "half", "--vae-float16")[0] == 0
    plain, half = (configs(tmp_path / name)["vae_decoder"] for name in ("plain", "half"))
    assert parameter(half, "vae_float16") == "1"
    assert int(parameter(half, "needs_mib")) < int(parameter(plain, "needs_mib"))


def test_8_bit_floats_are_asked_for_by_pipeline(files: Path, tmp_path: Path) -> None:
    """Shards alone are told, and need a byte more for each weight that they copy."""
    file = files / "fp8.toml"
    table = '[pipelines.{}]\ncheckpoint = "first"\nunet_shards = 1\nunet_gpus = [0]\nfp8 = {}\n'
    file.write_text(table.format("a", "true") + table.format("b", "false"))
    assert export("--deployment", file, "--repository", tmp_path / "r")[0] == 0
    models = configs(tmp_path / "r")
    assert {name for name, config in models.items() if "fp8" in config.parameters} == {"a_unet_shard0"}
    assert parameter(models["a_unet_shard0"], "fp8") == "1"
    needs = {each: int(parameter(models[f"{each}_unet_shard0"], "needs_mib")) for each in "ab"}
    assert needs["a"] >= needs["b"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--unet-shards", "1", "--unet-gpus", "0,1"), "names 2 GPUs for 1 UNet shards"),
        (("--unet-gpus", "0,x"), "--unet-gpus.1 is 'x'"),
        (("--vae-float16",), "vae_float16 is given and the VAE is on the CPU; wanted: vae_gpu, or unet_gpus"),
        (("--unet-gpus=-1",), "--unet-gpus.0 is '-1'"),
        (("--vae-gpu=-1",), "--vae-gpu is -1"),
        (("--unet-shards", "0"), "--unet-shards is 0"),
        (("--dtype", "int8"), "dtype is 'int8'"),
        (("--runtime", "onnx"), "runtime is 'onnx'"),
        (("--runtime", "tensorrt", "--engines", "e"), "runtime is tensorrt; wanted with it: unet_gpus"),
        (("--runtime", "tensorrt", "--unet-gpus", "0"), "wanted with it: engines"),
        (("--runtime", "tensorrt-rtx", "--engines", "e"), "runtime is tensorrt-rtx; wanted with it: unet_gpus"),
        (("--engines", "e"), "engines is given; wanted with it: runtime tensorrt or tensorrt-rtx, not torch"),
        (("--runtime", "tensorrt", "--unet-gpus", "0", "--engines", "e"), "TensorRT is missing"),
        (
            ("--runtime", "tensorrt-rtx", "--unet-gpus", "0", "--engines", "e", "--dtype", "bfloat16"),
            "--dtype is bfloat16; allowed: float32, float16",
        ),
        (("--fp8",), "fp8 is on; wanted with it: unet_gpus, since a CPU would only emulate it"),
        (
            ("--fp8", "--unet-gpus", "0", "--runtime", "compile"),
            "fp8 is on; wanted with it: runtime torch, not compile",
        ),
        (("--steps", "1000"), "the default of steps is 1000"),
        (("--name", "a/b"), '--name is "a/b"; wanted: letters'),
        (("--name", "denoiser"), "two models would be called denoiser"),
        (("--deployment", "x.toml"), "wanted: --checkpoint with options, or --deployment FILE"),
    ],
)
def test_impossible_options_are_refused(files: Path, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    code, output = export("--checkpoint", files / "first", "--repository", tmp_path / "r", *options)
    assert code == 2
    assert said in output
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x =", "Invalid value"),
        ("", "pipelines: Field required"),
        ("[pipelines]", "pipelines"),
        ('[pipelines.a]\ncheckpoint = "nowhere"', "nowhere"),
        ('[pipelines.a]\ncheckpoint = "first"\nshards = 2', "pipelines.a.shards is 2"),
        (
            '[pipelines.a]\ncheckpoint="first"\n[pipelines.b]\ncheckpoint="old"\nlora_host_mib=1',
            "lora_host_mib differs",
        ),
        ('[pipelines.a]\ncheckpoint = "first"\nunet_gpus = [-1]', "pipelines.a.unet_gpus.0 is -1"),
        ('[pipelines.a]\ncheckpoint = "first"\nfp8 = true', "pipelines.a: fp8 is on; wanted with it: unet_gpus"),
        ('[pipelines.a]\ncheckpoint = "first"\n[controlnets.b]\npath = "old_edges"', "does not fit"),
        ('[pipelines.a]\ncheckpoint = "first"\n[controlnets.b]\npath = "edges"\ngpus=[0]\nprocesses=2', "one of gpus"),
    ],
)
def test_mistakes_in_a_file_are_named(files: Path, text: str, said: str) -> None:
    file = files / "mistake.toml"
    file.write_text(text)
    with pytest.raises(DeploymentError, match=said.replace(".", r"\.")):
        Deployment.read(file).resolve()
