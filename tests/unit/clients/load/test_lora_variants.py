"""Variants of a LoRA: as many files as asked for, alike but different, that say the same of themselves."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from swiftdiffusion.clients.cli import app


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    factors = {f"lora_unet_x.lora_{name}.weight": random.standard_normal((4, 8)) for name in ("down", "up")}
    tensors = {name: factor.astype(np.float16) for name, factor in factors.items()}
    save_file(tensors | {"lora_unet_x.alpha": np.array(2, np.float16)}, tmp_path / "ink.safetensors", {"kind": "ink"})
    return tmp_path / "ink.safetensors"


def test_variants_differ_in_factors_alone(tmp_path: Path, lora: Path) -> None:
    out = tmp_path / "new"
    result = CliRunner().invoke(app, ["lora-variants", str(lora), str(out), "--count", "12"])
    assert result.exit_code == 0, result.output
    files = sorted(out.iterdir())
    assert [file.name for file in files[:2]] == ["lora00000.safetensors", "lora00001.safetensors"]
    assert len({file.read_bytes() for file in files}) == 12
    original = load_file(lora)
    for file in files:
        made = load_file(file)
        assert made["lora_unet_x.alpha"] == original["lora_unet_x.alpha"]
        for name, tensor in original.items():
            assert made[name].dtype == tensor.dtype
            assert np.abs(made[name] - tensor).max() < 0.3
        with safe_open(file, "np") as opened:
            assert opened.metadata() == {"kind": "ink"}


def test_the_same_seed_gives_the_same_files(tmp_path: Path, lora: Path) -> None:
    for name, seed in (("one", "1"), ("same", "1"), ("other", "2")):
        CliRunner().invoke(app, ["lora-variants", str(lora), str(tmp_path / name), "--count", "1", "--seed", seed])
    one, same, other = ((tmp_path / name / "lora00000.safetensors").read_bytes() for name in ("one", "same", "other"))
    assert one == same != other


def test_what_is_no_lora_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing of use")
    arguments = ["lora-variants", str(tmp_path / "x.safetensors"), str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert "cannot be changed" in result.output
