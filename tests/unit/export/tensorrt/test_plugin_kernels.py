"""The plugins' kernels: what is compiled, its parameters, and the grids that launch it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs the Triton language: pip install 'swiftdiffusion[kernels]'")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from swiftdiffusion.export.tensorrt.plugin_kernels import GegluNode, GroupNormNode, compiled, tactics
from swiftdiffusion.kernels import geglu, group_norm_silu
from swiftdiffusion.kernels.configurations import configuration

HALF = torch.float16
NODE = GroupNormNode(
    channels=320,
    pixels=128 * 128,
    pixels_vary=False,
    groups=32,
    eps=1e-5,
    silu=True,
    embedding=False,
    dtype=HALF,
    channels_last=True,
)


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def listed(ptx: str, name: str) -> list[str]:
    return re.findall(r"\.param \.(\w+)", ptx.partition(f".entry {name}(")[2].partition(")")[0])


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        (NODE, ["x", "weight", "bias"]),
        (replace(NODE, embedding=True), ["x", "embedding", "weight", "bias"]),
        (replace(NODE, channels_last=False, silu=False), ["x", "weight", "bias"]),
        (replace(NODE, pixels_vary=True, dtype=torch.bfloat16), ["x", "weight", "bias"]),
        (replace(NODE, channels=64, groups=8, pixels=64, dtype=torch.float32), ["x", "weight", "bias"]),
    ],
    ids=["channels last", "embedding", "linear", "sizes vary", "small"],
)
def test_a_group_norm_takes_inputs_integers_output(node: GroupNormNode, inputs: list[str]) -> None:
    """In the order in which the operator's inputs are: TensorRT passes pointers by position."""
    kernel = compiled(node, 90, 1)
    assert [parameter.name for parameter in kernel.parameters] == [*inputs, "channels", "pixels", "y"]
    assert listed(kernel.plain_ptx, kernel.name) == ["u64"] * len(inputs) + ["u32", "u32", "u64"]
    assert ".version 8.7" in kernel.plain_ptx
    assert ".target sm_90a" in kernel.plain_ptx


@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16, torch.float32], ids=str)
def test_a_geglu_takes_input_integers_output(dtype: torch.dtype) -> None:
    kernel = compiled(GegluNode(2560, dtype), 90, 1)
    assert [parameter.name for parameter in kernel.parameters] == ["x", "rows", "width", "y"]
    assert listed(kernel.plain_ptx, kernel.name) == ["u64", "u32", "u32", "u64"]


@pytest.mark.parametrize("op", ["group_norm_silu", "geglu"])
def test_tactics_are_different_kernels(op: str) -> None:
    found = tactics(op, 90)
    assert found[0] == configuration(op, 90)
    assert len(found) > 1
    node = NODE if op == "group_norm_silu" else GegluNode(2560, HALF)
    texts = {compiled(node, 90, tactic).plain_ptx for tactic in range(1, len(found) + 1)}
    assert len(texts) == len(found)


class Recorder:
    """A kernel that notes how it is launched."""

    def __init__(self) -> None:
        self.grid: tuple[int, ...] = ()
        self.arguments: tuple[Any, ...] = ()
        self.constants: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def note(*arguments: Any, **constants: Any) -> None:
            self.grid, self.arguments, self.constants = grid, arguments, constants

        return note


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("embedding", [True, False])
@pytest.mark.parametrize(("shape", "groups"), [((2, 1280, 8, 8), 32), ((1, 640, 4, 4), 32), ((3, 48, 5, 3), 8)])
def test_a_group_norm_is_launched_as_the_operator_launches_it(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], groups: int, embedding: bool, channels_last: bool
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(group_norm_silu, "kernels_of", lambda op: SimpleNamespace(whole=recorder))
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.zeros(shape, dtype=HALF).contiguous(memory_format=order)
    flat, added = torch.zeros(shape[1], dtype=HALF), torch.zeros(shape[:2], dtype=HALF)
    group_norm_silu.launch(x, flat, flat, added if embedding else None, groups, 1e-5, True)

    pixels = shape[2] * shape[3]
    node = GroupNormNode(shape[1], pixels, False, groups, 1e-5, True, embedding, HALF, channels_last)
    monkeypatch.undo()
    source = node.source(90, 1)
    assert recorder.grid == (node.blocks(90, 1), shape[0])
    assert recorder.arguments[4:6] == (shape[1], pixels)
    given = dict(zip(source.function.arg_names, recorder.arguments, strict=False)) | recorder.constants
    assert given["num_warps"] == source.num_warps
    for name, value in source.constants.items():
        assert given[name] == value, name


def test_a_large_group_norm_is_one_launch_too() -> None:
    assert len(group_norm_silu.sources((2, 320, 128 * 128), 32, HALF, 90)) == 2
    source = NODE.source(90, 1)
    assert source.function.__name__ == "whole"
    assert NODE.blocks(90, 1) == -(-32 // source.constants["GROUPS"])


def test_sizes_that_vary_are_not_promised_to_be_even() -> None:
    assert "pixels" in NODE.source(90, 1).multiples_of_16
    assert "pixels" not in replace(NODE, pixels_vary=True).source(90, 1).multiples_of_16
    assert "channels" in replace(NODE, pixels_vary=True).source(90, 1).multiples_of_16


@pytest.mark.parametrize("shape", [(2, 4096, 640), (1, 77, 3200), (5, 3, 24)])
def test_a_geglu_is_launched_as_the_operator_launches_it(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(geglu, "kernels_of", lambda op: SimpleNamespace(geglu=recorder))
    geglu.launch(torch.zeros(shape, dtype=HALF), None)
    monkeypatch.undo()
    rows, width = shape[0] * shape[1], shape[2] // 2
    node = GegluNode(width, HALF)
    assert recorder.grid == (-(-rows // node.block_rows(90, 1)), node.blocks(90, 1))
    assert recorder.arguments[2:4] == (rows, width)
    for name, value in node.source(90, 1).constants.items():
        assert recorder.constants.get(name) == value, name


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="320 channels in 33 groups"):
        replace(NODE, groups=33).source(90, 1)


def test_what_they_compute() -> None:
    """In a process of its own: whether `triton` interprets kernels is chosen at its import."""
    tests = Path(__file__).with_name("test_plugins_interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", str(tests)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stdout + run.stderr
