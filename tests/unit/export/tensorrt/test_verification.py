"""Comparisons of engines with references, with networks of PyTorch in the engines' place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import checkpoints
import lora_files
from engine_descriptions import described
from swiftdiffusion.export.tensorrt.references import OnnxReference, TorchReference, random_inputs
from swiftdiffusion.export.tensorrt.verification import Case, Comparison, relative_error, time_calls, verify
from swiftdiffusion.export.tensorrt.verify_command import show
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

CPU = torch.device("cpu")
ROWS = 2
ENCODER_SHAPES = {
    "latents": (ROWS, 4, 16, 16),
    "timesteps": (ROWS,),
    "encoder_hidden_states": (ROWS, 77, 40),
    "text_embeds": (ROWS, 24),
    "time_ids": (ROWS, 6),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl"), depth=2))


@pytest.fixture(scope="module")
def loras(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[CanonicalLora]:
    shapes = BaseModules.of(checkpoint).shapes["unet"]
    attention = {name: shape for name, shape in shapes.items() if "attn" in name}
    directory = tmp_path_factory.mktemp("loras")
    made = [lora_files.kohya({"unet": shapes}), lora_files.kohya({"unet": attention}, seed=1)]
    canonicaliser = Canonicaliser(checkpoint)
    return [canonicaliser.read(lora.save(directory / f"{n}.safetensors")) for n, lora in enumerate(made)]


def test_a_call_is_timed() -> None:
    assert 5 <= time_calls(lambda: time.sleep(0.005)) < 5000, "in milliseconds"


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swiftdiffusion.export.tensorrt.verification.time_calls", lambda call: 1.0)


def states(results: list[Comparison], engine: str) -> dict[str, bool]:
    return {result.state: result.passed for result in results if result.engine == engine}


def test_both_halves_with_loras_and_back(checkpoint: Checkpoint, loras: list[CanonicalLora]) -> None:
    unet, exact = (checkpoint.load_unet(CPU, torch.float32) for _ in range(2))
    shapes = {"unet_encoder": ENCODER_SHAPES}
    encoder = TorchReference(unet, "unet_encoder")
    halfway = encoder.run(random_inputs(ENCODER_SHAPES, 0))
    shapes["unet_decoder"] = {name: tuple(tensor.shape) for name, tensor in halfway.items()} | {
        "encoder_hidden_states": (ROWS, 77, 40)
    }
    checked = [
        Case(name, "plugins", "float16", TorchReference(unet, name), TorchReference(exact, name), random_inputs(own, 0))
        for name, own in shapes.items()
    ]
    patchers = Patcher({"unet": unet}), Patcher({"unet": exact})

    def apply(wanted: list[tuple[CanonicalLora, float]]) -> None:
        for patcher in patchers:
            patcher.apply(wanted)

    seen: list[int] = []
    sets = {"first": [(loras[0], 1.0)], "second": [(loras[1], 1.0)]}
    results = verify(checked, sets, apply, lambda: seen.append(1))
    wanted = ["as built", "first", "second", "first again", "no LoRAs again"]
    assert list(states(results, "unet_encoder")) == list(states(results, "unet_decoder")) == wanted
    assert all(result.passed for result in results)
    assert len(seen) == len(results) == 10
    assert {result.rows for result in results} == {ROWS}
    show(results)

    def forgets_the_first_half(wanted: list[tuple[CanonicalLora, float]]) -> None:
        patchers[1].apply(wanted)
        if wanted != sets["second"]:
            patchers[0].apply(wanted)

    failed = states(verify(checked, sets, forgets_the_first_half), "unet_decoder")
    assert failed == {
        "as built": True,
        "first": True,
        "second": False,
        "first again": True,
        "no LoRAs again": True,
    }


def test_without_loras_there_is_one_comparison() -> None:
    class Same:
        def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return dict(inputs)

    shapes = [(rows, 4, 8, 8) for rows in (1, 2, 4)]
    profiles = {"latents": tuple(shapes)}, {"latents": (shapes[2],) * 3}
    checked = Case.of(described("vae_decoder", *profiles), "no plugins", Same(), Same())
    results = verify(checked, {}, lambda loras: None)
    assert [result.rows for result in results] == [2, 4], "each profile at its best"
    for result in results:
        assert (result.state, result.error, result.milliseconds) == ("as built", 0.0, 1.0)


def test_errors() -> None:
    wanted = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2)}
    assert relative_error(wanted, wanted) == 0.0
    assert relative_error({"a": torch.tensor([3.0, 4.5]), "b": torch.zeros(2)}, wanted) == pytest.approx(0.1)
    assert relative_error({"a": torch.tensor([3.0, float("nan")]), "b": torch.zeros(2)}, wanted) == float("inf")
    assert relative_error({"a": wanted["a"], "b": torch.ones(2)}, wanted) == float("inf")
    with pytest.raises(ValueError, match=r"outputs are \['a'\]; wanted"):
        relative_error({"a": wanted["a"]}, wanted)
    with pytest.raises(ValueError, match=r"b is \[1\]; wanted: \[2\]"):
        relative_error({"a": wanted["a"], "b": torch.zeros(1)}, wanted)


def test_an_onnx_file_as_reference(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    text = '<ir_version: 10, opset_import: ["" : 18]> g (float16[n, 2] x, int64[n, 2] input_ids) => (float16[n, 2] y)'
    text += "{ ids = Cast <to = 10> (input_ids) y = Add (x, ids) }"
    onnx.save(onnx.parser.parse_model(text), tmp_path / "g.onnx")
    inputs = random_inputs({"x": (3, 2), "input_ids": (3, 2), "timesteps": (3,)}, 7)
    (found,) = OnnxReference(tmp_path / "g.onnx").run(inputs).values()
    assert found.dtype == torch.float32
    assert torch.equal(found, (inputs["x"].half() + inputs["input_ids"].half()).float())
    again = random_inputs({"x": (3, 2), "input_ids": (3, 2), "timesteps": (3,)}, 7)
    assert all(torch.equal(inputs[name], tensor) for name, tensor in again.items())
    assert (inputs["timesteps"] == inputs["timesteps"].floor()).all()
