"""What the exporter is told of ControlNets, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import checkpoints
from swiftdiffusion.export.controlnets import served_controlnets
from swiftdiffusion.export.serving_options import ServedControlNet
from swiftdiffusion.python_backends.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("checkpoint") / "sdxl"))


@pytest.fixture
def network(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return checkpoints.controlnet(checkpoint.path, tmp_path / "edges", 0)


def test_names_directories_and_gpus(checkpoint: Checkpoint, network: Path) -> None:
    served = served_controlnets([f"edges={network}", f"depth={network}@2,3"], checkpoint)
    assert served == (ServedControlNet("edges", network), ServedControlNet("depth", network, (2, 3)))


@pytest.mark.parametrize("text", ["edges", "=DIR", "../x=DIR", "edges=", "edges=DIR@", "edges=DIR@a", "edges=DIR@1,"])
def test_what_is_no_controlnet_is_refused(checkpoint: Checkpoint, network: Path, text: str) -> None:
    with pytest.raises(ValueError, match="wanted: NAME=DIR"):
        served_controlnets([text.replace("DIR", str(network))], checkpoint)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel; served are ControlNetModel"),
        ({"cross_attention_dim": 768}, "its cross_attention_dim is 768, the UNet's 40"),
        ({"block_out_channels": [16, 32, 64]}, "its block_out_channels"),
        ({"conditioning_embedding_out_channels": [16, 32, 96, 256]}, "8 times smaller, the VAE 4 times"),
        ({"global_pool_conditions": True}, "global_pool_conditions"),
    ],
)
def test_what_does_not_fit_is_refused(
    checkpoint: Checkpoint, network: Path, change: dict[str, object], said: str
) -> None:
    config = json.loads((network / "config.json").read_text())
    (network / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=said):
        served_controlnets([f"edges={network}"], checkpoint)


def test_an_empty_directory_and_a_name_twice(checkpoint: Checkpoint, network: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        served_controlnets([f"edges={tmp_path}"], checkpoint)
    with pytest.raises(ValueError, match="names edges twice"):
        served_controlnets([f"edges={network}", f"edges={network}"], checkpoint)
