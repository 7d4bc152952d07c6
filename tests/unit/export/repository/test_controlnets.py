"""What the exporter is told of ControlNets, and what it refuses."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

import checkpoints
from swiftdiffusion.export.repository.deployment import Deployment, DeploymentError
from swiftdiffusion.export.repository.serving_options import ServedControlNet
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("checkpoint") / "sdxl"))


@pytest.fixture
def network(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return checkpoints.controlnet(checkpoint.path, tmp_path / "edges", 0)


def resolved(checkpoint: Checkpoint, *texts: str) -> tuple[ServedControlNet, ...]:
    """What `--controlnet` options come to."""
    deployment = Deployment.from_options(None, {"checkpoint": checkpoint.path}, texts)
    return deployment.resolve()["sdxl"].options.controlnets


def test_names_paths_and_places(checkpoint: Checkpoint, network: Path) -> None:
    texts = ("a", "b@2,3", "c@cpu", "d@cpu:3", "e@grpc://10.0.0.2:8001", "f@grpc://host:1/canny")
    served = resolved(checkpoint, *(f"{text[0]}={network}{text[1:]}" for text in texts))
    assert served == (
        ServedControlNet("a", network),
        ServedControlNet("b", network, (2, 3)),
        ServedControlNet("c", network),
        ServedControlNet("d", network, processes=3),
        ServedControlNet("e", network, url="grpc://10.0.0.2:8001"),
        ServedControlNet("f", network, url="grpc://host:1/canny"),
    )


@pytest.mark.parametrize("text", ["edges", "=DIR", "../x=DIR", "edges=", "edges=DIR@", "edges=DIR@a", "edges=DIR@1,"])
def test_what_is_no_controlnet_is_refused(checkpoint: Checkpoint, network: Path, text: str) -> None:
    with pytest.raises(DeploymentError, match="wanted: NAME=PATH"):
        resolved(checkpoint, text.replace("DIR", str(network)))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("1,1", "gpus names one twice"),
        ("cpu:0", "processes is '0'"),
        ("cpu:two", "processes is 'two'"),
        ("http://host:8000", "wanted: grpc://HOST:PORT"),
        ("grpc://host", "wanted: grpc://HOST:PORT"),
        ("grpc://host:port", "wanted: grpc://HOST:PORT"),
    ],
)
def test_impossible_places_are_refused(checkpoint: Checkpoint, network: Path, place: str, said: str) -> None:
    with pytest.raises(DeploymentError, match=said):
        resolved(checkpoint, f"edges={network}@{place}")


def test_unions_and_pooling_networks_are_known_as_such(checkpoint: Checkpoint, tmp_path: Path) -> None:
    union = checkpoints.controlnet_union(checkpoint.path, tmp_path / "union", 0)
    pooling = checkpoints.controlnet(checkpoint.path, tmp_path / "shuffle", 0, global_pool_conditions=True)
    served = resolved(checkpoint, f"union={union}", f"shuffle={pooling}")
    assert [(each.control_modes, each.pools) for each in served] == [(4, False), (0, True)]


def test_a_single_file_is_taken_if_it_fits(checkpoint: Checkpoint, network: Path, tmp_path: Path) -> None:
    file = network / "diffusion_pytorch_model.safetensors"
    assert resolved(checkpoint, f"edges={file}") == (ServedControlNet("edges", file),)
    tensors = load_file(file)
    missing = {name: tensor for name, tensor in tensors.items() if name != "mid_block.resnets.0.conv1.weight"}
    wider = tensors | {"conv_in.weight": torch.zeros(32, 4, 3, 3)}
    wrong = {
        "missing": (missing, r"does not hold what the UNet of .* says: it lacks mid_block\.resnets\.0\.conv1\.weight"),
        "wider": (wider, r"its conv_in\.weight is 32 × 4 × 3 × 3; wanted: 16 × 4 × 3 × 3"),
        "foreign": ({"x": torch.zeros(1)}, "is no ControlNet as served: it has x besides"),
        "more": (tensors | {"extra.weight": torch.zeros(1)}, r"it has extra\.weight besides"),
        "lora": ({"lora_unet_conv_in.lora_up.weight": torch.zeros(1, 1)}, "is a LoRA; served are ControlNets"),
    }
    for name, (content, said) in wrong.items():
        save_file(content, tmp_path / f"{name}.safetensors")
        with pytest.raises(DeploymentError, match=said):
            resolved(checkpoint, f"edges={tmp_path / name}.safetensors")
    union = checkpoints.controlnet_union(checkpoint.path, tmp_path / "union", 0)
    with pytest.raises(DeploymentError, match="wanted: its directory"):
        resolved(checkpoint, f"edges={union / 'diffusion_pytorch_model.safetensors'}")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(DeploymentError, match="is no safetensors file"):
        resolved(checkpoint, f"edges={tmp_path / 'text'}.safetensors")


def test_a_file_behind_a_link_keeps_the_name_that_it_was_given(
    checkpoint: Checkpoint, network: Path, tmp_path: Path
) -> None:
    link = tmp_path / "canny.safetensors"
    (network / "diffusion_pytorch_model.safetensors").rename(tmp_path / "blob")
    link.symlink_to(tmp_path / "blob")
    assert resolved(checkpoint, f"canny={link}") == (ServedControlNet("canny", link),)


def test_a_class_that_diffusers_calls_otherwise(checkpoint: Checkpoint, tmp_path: Path) -> None:
    union = checkpoints.controlnet_union(checkpoint.path, tmp_path / "union", 0)
    config = json.loads((union / "config.json").read_text())
    (union / "config.json").write_text(json.dumps(config | {"_class_name": "ControlNetModel_Union"}))
    assert resolved(checkpoint, f"union={union}")[0].control_modes == 4


def other(checkpoint: Checkpoint, directory: Path, **config: object) -> Path:
    """A ControlNet of the checkpoint's UNet but for these values of its config."""
    unet = UNet2DConditionModel.load_config(checkpoint.path / "unet")
    embedding = {"conditioning_embedding_out_channels": (8, 16, 16)}
    own = {key: value for key, value in unet.items() if not key.startswith("_")}
    taken = own.keys() & inspect.signature(ControlNetModel.__init__).parameters.keys()
    ControlNetModel(**({key: own[key] for key in taken} | embedding | config)).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    "alike",
    [
        {"down_block_types": ["DownBlock2D"] * 3},
        {"transformer_layers_per_block": [2, 1, 1]},
        {"mid_block_type": "UNetMidBlock2D"},
    ],
    ids=str,
)
def test_what_fits_is_said_by_inputs_and_residuals(
    checkpoint: Checkpoint, tmp_path: Path, alike: dict[str, object]
) -> None:
    path = other(checkpoint, tmp_path / "edges", **alike)
    assert resolved(checkpoint, f"edges={path}") == (ServedControlNet("edges", path),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cross_attention_dim": 32}, "its cross_attention_dim is 32, the UNet's 40"),
        ({"in_channels": 9}, "its in_channels is 9, the UNet's 4"),
        ({"projection_class_embeddings_input_dim": 96}, "its projection_class_embeddings_input_dim is 96, the UNet's"),
        ({"block_out_channels": [16, 48, 32]}, "one of its residuals is 48 × 8 × 8, the UNet's 32 × 8 × 8"),
        ({"layers_per_block": 2}, "it gives 10 residuals, the UNet takes 7"),
        ({"conditioning_embedding_out_channels": [8, 16, 16, 16]}, "8 times smaller, the VAE 4 times"),
        ({"conditioning_channels": 1}, "takes 1 channels; served are RGB pictures"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    with pytest.raises(DeploymentError, match=said):
        resolved(checkpoint, f"edges={other(checkpoint, tmp_path / 'edges', **change)}")


def test_another_class_is_refused(checkpoint: Checkpoint, network: Path) -> None:
    config = json.loads((network / "config.json").read_text())
    (network / "config.json").write_text(json.dumps(config | {"_class_name": "T2IAdapter"}))
    with pytest.raises(DeploymentError, match="holds a T2IAdapter; served are ControlNetModel and"):
        resolved(checkpoint, f"edges={network}")


def test_differences_belong_to_one_checkpoint(checkpoint: Checkpoint, network: Path, tmp_path: Path) -> None:
    file = network / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"difference": torch.ones(1)}, file)
    assert resolved(checkpoint, f"edges={file}") == (ServedControlNet("edges", file),)
    second = checkpoints.sdxl(tmp_path / "second")
    tables = {"a": {"checkpoint": checkpoint.path}, "b": {"checkpoint": second}}
    both = Deployment.model_validate({"pipelines": tables, "controlnets": {"edges": {"path": file}}})
    with pytest.raises(DeploymentError, match=r"holds differences to a UNet and fits those of .* and .*second"):
        both.resolve()


def test_an_empty_directory_and_a_name_twice(checkpoint: Checkpoint, network: Path, tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="holds no weights"):
        resolved(checkpoint, f"edges={tmp_path}")
    with pytest.raises(DeploymentError, match="names edges twice"):
        resolved(checkpoint, f"edges={network}", f"edges={network}")
