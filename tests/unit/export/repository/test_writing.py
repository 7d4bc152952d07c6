"""The exporter: what it writes, what it refuses, and that the committed repository is its work."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

import checkpoints
from swiftdiffusion.clients.cli import app
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint, CheckpointError

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.sdxl(tmp_path_factory.mktemp("checkpoints") / "sdxl")


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.sd15(tmp_path_factory.mktemp("checkpoints") / "sd15")


def export(checkpoint: Path, repository: Path, *options: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    arguments = ["export", "--checkpoint", str(checkpoint), "--repository", str(repository), *options]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def config_of(repository: Path, model: str) -> model_config_pb2.ModelConfig:
    """A written configuration."""
    text = (repository / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_committed_repository_is_what_the_exporter_writes(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    (line,) = (line for line in makefile.splitlines() if "swiftdiffusion export" in line and "demo/weights" in line)
    options = line.split("swiftdiffusion export", 1)[1].replace("export/demo", str(ROOT / "export/demo")).split()
    repository = tmp_path / "model_repository"
    options[options.index("--repository") + 1] = str(repository)
    assert CliRunner().invoke(app, ["export", *options]).exit_code == 0
    written, committed = tree(repository), tree(ROOT / "model_repository")
    absolute, relative = str(ROOT / "export/demo").encode(), b"../export/demo"
    assert {name: text.replace(absolute, relative) for name, text in written.items()} == committed


def test_what_it_will_need_is_said_and_written(sd15: Path, tmp_path: Path) -> None:
    code, output = export(sd15, tmp_path / "r", "--unet-shards", "1")
    assert code == 0
    for said in (r"memory of unet_shard0: \d+ MiB", r"memory: \d+ MiB for 10 processes", "shared memory: at most"):
        assert re.search(said, output)
    assert re.search(r"a step of denoiser: 0.000118 TFLOP, about \S+ s on 1 thread of this machine", output)
    parameters = config_of(tmp_path / "r", "unet_shard0").parameters
    assert parameters["gflop"].string_value == "0.118"
    assert int(parameters["needs_mib"].string_value) == 132  # 128 of projections, 0.8 of weights, 3 × 0.8


def test_a_shard_on_a_gpu_needs_less_for_weights_and_more_for_loras(sd15: Path, tmp_path: Path) -> None:
    def needs_mib(*options: str) -> int:
        assert export(sd15, tmp_path / "r", *options)[0] == 0
        return int(config_of(tmp_path / "r", "unet_shard0").parameters["needs_mib"].string_value)

    (tmp_path / "loras").mkdir()
    assert 0 < needs_mib("--unet-gpus", "0") < needs_mib()
    assert needs_mib("--unet-gpus", "0", "--loras", str(tmp_path / "loras")) > 1024  # the last LoRAs stay there


def test_a_vae_whose_weights_cannot_be_read_is_told(sd15: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(sd15, tmp_path / "damaged")
    weights = damaged / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, output = export(damaged, tmp_path / "r")
    assert code == 2
    assert re.search(r"vae cannot be read|its VAE cannot be read", output)
    assert not (tmp_path / "r").exists()
    code, output = export(sd15, tmp_path / "r")
    assert code == 0
    assert re.search(r"linear previews of sd15: off by 0\.\d{3} of a colour's range", output)


def test_both_families_have_their_ensembles(sdxl: Path, sd15: Path, tmp_path: Path) -> None:
    for checkpoint, name in ((sdxl, "sdxl"), (sd15, "sd15")):
        repository = tmp_path / name
        assert export(checkpoint, repository)[0] == 0
        models = {entry.name for entry in repository.iterdir()}
        shared = {"preprocess", "text_encoder", "denoiser", "denoiser_stream", "cancel", "lora_store"}
        shared |= {"vae_encoder", "vae_decoder"}
        assert models == shared | {"unet_shard0", "unet_shard1", "pipelines", name, f"{name}_stream"}
        for model in models:
            assert config_of(repository, model).name == model


def test_shards_go_to_their_gpus(sdxl: Path, tmp_path: Path) -> None:
    assert export(sdxl, tmp_path / "r", "--unet-shards", "3", "--unet-gpus", "2,5")[0] == 0
    gpus = [list(config_of(tmp_path / "r", f"unet_shard{index}").instance_group[0].gpus) for index in range(3)]
    assert gpus == [[2], [5], [2]]
    assert config_of(tmp_path / "r", "unet_shard0").parameters["dtype"].string_value == "float16"
    kinds = model_config_pb2.ModelInstanceGroup
    assert config_of(tmp_path / "r", "denoiser").instance_group[0].kind == kinds.KIND_CPU


def test_no_weights_lie_in_the_repository_and_paths_lead_to_them(sdxl: Path, tmp_path: Path) -> None:
    assert export(sdxl, tmp_path / "elsewhere" / "r")[0] == 0
    assert export(sdxl, sdxl.parent / "beside")[0] == 0
    for repository in (tmp_path / "elsewhere" / "r", sdxl.parent / "beside"):
        assert sum(len(content) for content in tree(repository).values()) < 100_000
        path = config_of(repository, "unet_shard0").parameters["checkpoint"].string_value
        assert (repository / path / "model_index.json").samefile(sdxl / "model_index.json")
    assert not Path(path).is_absolute()


def test_a_second_export_replaces_the_first_and_nothing_else(sdxl: Path, tmp_path: Path) -> None:
    repository = tmp_path / "r"
    assert export(sdxl, repository, "--unet-shards", "3")[0] == 0
    assert export(sdxl, repository, "--unet-shards", "1")[0] == 0
    assert not (repository / "unet_shard1").exists()
    (repository / "notes.txt").write_text("mine")
    code, output = export(sdxl, repository)
    assert code == 2
    assert "notes.txt" in output
    assert (repository / "notes.txt").read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["r"]


def test_a_checkpoint_that_would_not_start_is_refused_in_a_sentence(sd15: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(sd15, tmp_path / "flow"))
    index = json.loads((checkpoint / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (checkpoint / "model_index.json").write_text(json.dumps(index))
    code, output = export(checkpoint, tmp_path / "r")
    assert code == 2
    assert "/flow: its scheduler FlowMatchEulerDiscreteScheduler cannot be run" in output.replace("\n", "")
    (checkpoint / "tokenizer/tokenizer.json").unlink()
    code, output = export(checkpoint, tmp_path / "r")
    assert code == 2
    assert "/flow/tokenizer holds no vocabulary; wanted: tokenizer.json" in output.replace("\n", "")
    assert not (tmp_path / "r").exists()


def test_only_schedulers_that_suit_the_checkpoint_can_be_asked_for(sd15: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(sd15, tmp_path / "edm"))
    index = json.loads((checkpoint / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EDMEulerScheduler"]
    (checkpoint / "model_index.json").write_text(json.dumps(index))
    (checkpoint / "scheduler/scheduler_config.json").write_text("{}")
    for directory, own, some in ((checkpoint, "EDMEulerScheduler", False), (sd15, "PNDMScheduler", True)):
        assert export(directory, tmp_path / "r")[0] == 0
        said = config_of(tmp_path / "r", "preprocess").parameters
        assert said["own_scheduler"].string_value == own
        assert ("euler" in json.loads(said["schedulers"].string_value)) is some
        assert config_of(tmp_path / "r", "unet_shard0").parameters["schedulers"] == said["schedulers"]


def test_what_cannot_be_served_is_refused_with_the_reason(sd15: Path, tmp_path: Path) -> None:
    assert "no model_index.json" in export(tmp_path, tmp_path / "r")[1].replace("\n", " ")
    copy = tmp_path / "pix2pix"
    (copy / "unet").mkdir(parents=True)
    (copy / "vae").mkdir()
    for name in ("model_index.json", "vae/config.json"):
        (copy / name).write_bytes((sd15 / name).read_bytes())
    config = json.loads((sd15 / "unet/config.json").read_text()) | {"in_channels": 8}
    (copy / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="holds no weights"):
        Checkpoint(copy)
    (copy / "unet/diffusion_pytorch_model.safetensors").touch()
    with pytest.raises(
        CheckpointError, match="takes 8 channels, the VAE gives 4; served are UNets that take 4, or 9 to inpaint"
    ):
        Checkpoint(copy)
    (copy / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(
        CheckpointError, match="FluxPipeline; served are StableDiffusionInpaintPipeline, StableDiffusionPipeline"
    ):
        Checkpoint(copy)
    assert not (tmp_path / "r").exists()
