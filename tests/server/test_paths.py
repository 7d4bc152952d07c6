"""Directories and names in any script, with blanks and quotes: there are ASCII file names and a shell in between."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import checkpoints
import lora_files
from swiftdiffusion.export.repository.deployment import Deployment
from swiftdiffusion.export.repository.writing import write_pipelines
from swiftdiffusion.python_backends.launcher import TritonServer
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from wire import generate, generate_with


def test_everything_may_lie_in_a_directory_of_any_name(tmp_path: Path) -> None:
    base = tmp_path / "möbel 家 \"q\" 'q' $HOME `x` (1)"
    checkpoint = Checkpoint(checkpoints.sd15(base / "chéck point", depth=2))
    loras, far = base / "lörás", base / "fär"
    loras.mkdir()
    far.mkdir()
    file = lora_files.kohya({"unet": dict(BaseModules.of(checkpoint).shapes["unet"])}).save(
        loras / "päper $.safetensors"
    )
    shutil.copy(file, far / "剪 纸.safetensors")
    (loras / "catalogue.json").write_text(json.dumps({"loras": {"剪纸": {"location": str(far / "剪 纸.safetensors")}}}))
    network = checkpoints.controlnet(checkpoint.path, base / "édges $x", 0)
    single = network / "diffusion_pytorch_model.safetensors"
    (base / "ländlich.safetensors").symlink_to(single)
    deployment = Deployment.from_options(
        None,
        {"checkpoint": checkpoint.path, "loras": loras, "unet_shards": 1},
        [f"edges={network}", f"single={base / 'ländlich.safetensors'}"],
    )
    repository = base / "répo sitory"
    write_pipelines(deployment.resolve(), repository)
    homes = {"HOME": str(base / "hömé"), "XDG_CACHE_HOME": str(base / "cäche")}
    with TritonServer(repository, environment=homes, log_file=base / "lög") as running:
        server = SimpleNamespace(grpc_url=running.grpc_url, http_url=running.http_url, model="sd15")
        bare = generate_with(server, [])
        for name in ("päper $", "剪纸"):
            picture = generate_with(server, [(name, 1.0)])
            assert [lora["name"] for lora in picture.info["loras"]] == [name]
            assert picture.distance(bare) > 0
        for name in ("edges", "single"):
            fields = {"PROMPT": "a cat", "SEED": 1, "STEPS": 2, "CONTROLNETS": json.dumps([{"name": name}])}
            picture = generate(server, "sd15", CONTROL_IMAGES=np.zeros((1, 1, 64, 64, 3), np.uint8), **fields)
            assert picture.info["controlnets"][0]["calls"] > 0
    assert (base / "cäche").is_dir()
    assert (base / "lög").stat().st_size > 0
