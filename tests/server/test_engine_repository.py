"""A repository that runs engines, written without a GPU: it is whole, and serving it there says what is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'swiftdiffusion[tensorrt-rtx]'")

import checkpoints
from serve_process import serving
from swiftdiffusion.clients.cli import app
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMetadata

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

EVALUATED = ("unet_shard0", "controlnet_edges", "text_encoder", "vae_decoder")
ENGINES = {"unet_encoder": 8, "unet_decoder": 8, "controlnet_edges": 8, "text_encoder": 8, "vae_decoder": 1}
"""Of the repository below, with the most rows of their calls."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("served")
    checkpoint = checkpoints.sd15(directory / "checkpoint", depth=2)
    controlnet = checkpoints.controlnet(checkpoint, directory / "edges", 0)
    asked = ["export", "--checkpoint", checkpoint, "--repository", directory / "repository", "--unet-gpus", "0"]
    asked += ["--runtime", "tensorrt-rtx", "--engines", directory / "engines", "--unet-shards", "1"]
    asked += ["--max-batch-size", "4", "--max-size", "64", "--controlnet", f"edges={controlnet}@0"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # others test beside this
    result = CliRunner().invoke(app, list(map(str, asked)))
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return directory / "repository"


def test_it_is_whole(repository: Path) -> None:
    engines = repository.parent / "engines"
    assert {path.stem for path in engines.glob("*.plan")} == ENGINES.keys()
    for name, rows in ENGINES.items():
        metadata = EngineMetadata.read(engines, name)
        assert (metadata.runtime, metadata.capabilities) == ("tensorrt-rtx", ())
        assert metadata.holds(rows)
        assert not metadata.holds(rows + 1)
    (profile,) = EngineMetadata.read(engines, "unet_encoder").profiles
    smallest, _, largest = profile["latents"]
    assert smallest[-1] < largest[-1], "pictures of any size"
    for model in EVALUATED:
        config = (repository / model / "config.pbtxt").read_text()
        for parameter, value in (("runtime", "tensorrt-rtx"), ("engines", "../engines")):
            assert re.search(rf'key: "{parameter}"\s+value \{{\s+string_value: "{value}"', config), (model, parameter)


def test_serving_it_says_what_is_missing(repository: Path) -> None:
    with serving(repository) as served:
        _out, messages = served.process.communicate(timeout=120)
    assert served.process.returncode == 1
    said = " ".join(messages.split())
    assert re.search(r"missing: GPU 0: wanted by .*unet_shard0.*; this machine has none that torch can use", said)
    assert "missing: TensorRT" not in said, "the package is there"
    assert "Traceback" not in said
