"""What the exporter is told of ControlNets, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
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
    for name, wrong in {"missing": missing, "wider": wider, "foreign": {"x": torch.zeros(1)}}.items():
        save_file(wrong, tmp_path / f"{name}.safetensors")
        with pytest.raises(DeploymentError, match="does not fit"):
            resolved(checkpoint, f"edges={tmp_path / name}.safetensors")
    save_file(tensors | {"extra.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(DeploymentError, match=r"it has extra\.weight besides"):
        resolved(checkpoint, f"edges={tmp_path / 'more'}.safetensors")
    union = checkpoints.controlnet_union(checkpoint.path, tmp_path / "union", 0)
    with pytest.raises(DeploymentError, match="wanted: its directory"):
        resolved(checkpoint, f"edges={union / 'diffusion_pytorch_model.safetensors'}")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(DeploymentError, match="is no safetensors file"):
        resolved(checkpoint, f"edges={tmp_path / 'text'}.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel; served are ControlNetModel and"),
        ({"cross_attention_dim": 768}, "its cross_attention_dim is 768, the UNet's 40"),
        ({"block_out_channels": [16, 32, 64]}, "its block_out_channels"),
        ({"conditioning_embedding_out_channels": [16, 32, 96, 256]}, "8 times smaller, the VAE 4 times"),
    ],
)
def test_what_does_not_fit_is_refused(
    checkpoint: Checkpoint, network: Path, change: dict[str, object], said: str
) -> None:
    config = json.loads((network / "config.json").read_text())
    (network / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(DeploymentError, match=said):
        resolved(checkpoint, f"edges={network}")


def test_an_empty_directory_and_a_name_twice(checkpoint: Checkpoint, network: Path, tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="holds no weights"):
        resolved(checkpoint, f"edges={tmp_path}")
    with pytest.raises(DeploymentError, match="names edges twice"):
        resolved(checkpoint, f"edges={network}", f"edges={network}")
