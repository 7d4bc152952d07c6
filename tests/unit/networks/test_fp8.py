"""Linear layers in 8-bit floats against an emulation of their own: LoRAs in the weights or beside them, as graphs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import checkpoints
import lora_files
from fused_runtime import FusedRuntime, on_tape
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.lora.patching import patcher
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks import fp8
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.fp8 import Fp8Copies, Fp8Linear, Fp8UnavailableError, linear, require_fp8
from swiftdiffusion.python_backends.networks.fused_modules import fuse
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from swiftdiffusion.python_backends.networks.savings import ALL, EXACT, NONE, Savings
from swiftdiffusion.python_backends.networks.unet import UNet, arguments, example
from swiftdiffusion.python_backends.networks.unet_halves import DecoderHalf, EncoderHalf

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SAME_BITS = replace(ALL, biases=False)
"""What changes no sum's order on a CPU."""
NEAR = 2e-2
"""Relative error where sums round otherwise: after that a value may go to e4m3's other neighbour."""
OF_SELF_ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
ENDINGS = (*OF_SELF_ATTENTION, "attn2.to_q", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")


class Case(NamedTuple):
    checkpoint: Checkpoint
    a: CanonicalLora
    b: CanonicalLora


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp(request.param)
    checkpoint = Checkpoint(getattr(checkpoints, request.param)(directory / "checkpoint", depth=2))
    shapes = {name: shape for name, shape in BaseModules.of(checkpoint).shapes["unet"].items() if len(shape) == 2}
    parts = dict(list(shapes.items())[::2]), {name: shape for name, shape in shapes.items() if "attn1" in name}
    files = [lora_files.kohya({"unet": names}, seed=seed) for seed, names in enumerate(parts)]
    read = Canonicaliser(checkpoint).read
    return Case(checkpoint, *(read(file.save(directory / f"{seed}.safetensors")) for seed, file in enumerate(files)))


def unet_of(case: Case, savings: Savings = SAME_BITS, *, captured: bool = True) -> UNet:
    def make() -> UNet:
        return UNet(case.checkpoint, CPU, torch.float32, FusedRuntime(savings=savings, fp8=True), most_rows=4)

    return on_tape(make) if captured else make()


def inputs(case: Case, rows: int, zeros: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(rows)
    tensors = {name: torch.randn(each.shape, generator=random) for name, each in example(case.checkpoint, rows).items()}
    tensors |= {"TIMESTEPS": torch.full((rows, 1), 500.0)}
    tensors["ENCODER_HIDDEN_STATES"][:zeros] = 0
    return tensors


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and scales of rows, by the definition of e4m3: 4 significant bits, from 2⁻⁶ on."""
    largest = x.abs().amax(-1, keepdim=True).clamp_min(1e-20)
    scaled = x * (448 / largest)
    step = 2.0 ** (scaled.abs().clamp_min(2**-6).frexp().exponent - 4)
    return (scaled / step).round() * step, largest / 448


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    (tokens, of_tokens), (channels, of_channels) = rounded(x.float()), rounded(weight.float())
    return ((tokens @ channels.T) * of_tokens * of_channels.T).bfloat16()


class Emulated(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = product(x, self.weight).to(x.dtype)
        return y if self.bias is None else y + self.bias


def emulated(
    case: Case,
    tensors: dict[str, torch.Tensor],
    *loras: tuple[CanonicalLora, float],
    beside: tuple[CanonicalLora, float] | None = None,
) -> torch.Tensor:
    """By diffusers' modules, with LoRAs in the weights, and one beside those of the first row."""
    unet, other = (case.checkpoint.load_unet(CPU, torch.float32) for _ in range(2))
    Patcher({"unet": unet}).apply(loras)
    Patcher({"unet": other}).apply([] if beside is None else [beside])
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear):
            if name.endswith(ENDINGS):
                module.__class__ = Emulated
            if beside is not None:
                module.register_forward_hook(partial(add_to_first, other.get_submodule(name).weight - module.weight))
    with torch.no_grad():
        given = arguments(tensors, CPU, torch.float32)
        return DecoderHalf(unet)(given[2], *EncoderHalf(unet)(*given))


def add_to_first(delta: torch.Tensor, _: object, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    return torch.cat([output[:1] + inputs[0][:1] @ delta.T, output[1:]])


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_layers_are_those_that_take_tokens(case: Case) -> None:
    unet = case.checkpoint.load_unet(CPU, torch.float32)
    linears = {name for name, module in unet.named_modules() if type(module) is torch.nn.Linear}
    Fp8Copies(unet, Patcher({"unet": unet}, in_place=True), "unet")
    found = {name for name, module in unet.named_modules() if isinstance(module, Fp8Linear)}
    assert found == {name for name in linears if name.endswith(ENDINGS)}
    assert any(name.endswith("proj_in") for name in found) == unet.config.use_linear_projection


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_product_is_of_rounded_factors(dtype: torch.dtype) -> None:
    layer, x = torch.nn.Linear(32, 48).to(dtype), torch.randn(2, 5, 32).to(dtype)
    network = torch.nn.ModuleDict({"layer": layer})
    weight = Patcher({"unet": network}, in_place=True).joined("unet", ["layer"])
    assert weight is not None
    copy, out = fp8.Fp8Weight(*fp8.quantise_rows(weight)), torch.empty(2, 5, 48, dtype=dtype)
    wanted = (product(x, layer.weight) + layer.bias).to(dtype)
    for found in (linear(x, copy, layer.bias), linear(x, copy, layer.bias, out), out):
        assert found.dtype == dtype
        assert torch.equal(found, wanted)
    for found in (linear(x, copy), linear(x, copy, out=out)):
        assert torch.equal(found, product(x, layer.weight).to(dtype))
    torch.testing.assert_close(linear(x, weight, layer.bias, out), layer(x))
    torch.testing.assert_close(linear(x, weight, out=out), x @ layer.weight.T)


@pytest.mark.parametrize("savings", [NONE, EXACT, SAME_BITS, ALL], ids=["none", "exact", "same bits", "all"])
@pytest.mark.parametrize("captured", [False, True])
def test_a_step_is_the_emulation(case: Case, savings: Savings, captured: bool) -> None:
    unet = unet_of(case, savings, captured=captured)
    for rows, zeros in ((2, 0), (2, 1), (1, 1), (4, 2), (2, 0)):
        tensors = inputs(case, rows, zeros)
        found, wanted = unet(tensors, "none"), emulated(case, tensors)
        assert error(found, wanted) < NEAR if savings.biases else torch.equal(found, wanted)


def test_it_differs_from_full_precision_as_e4m3_does_and_its_digest_says_so(case: Case) -> None:
    unet, full, tensors = unet_of(case), UNet(case.checkpoint, CPU, torch.float32), inputs(case, 2)
    assert 1e-3 < error(unet(tensors), full(tensors)) < 0.1
    assert unet.digest == f"{full.digest}-fp8"


def test_loras_in_the_weights_and_back(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly what a set touches, and what the one before had touched, is copied anew."""
    unet, tensors = unet_of(case), inputs(case, 4, 2)
    places, seen, copied = unet.patcher.places, [unet(tensors, "before")], list[int]()
    of_tokens = {stack for (_, name), (stack, _) in places.items() if name.endswith(ENDINGS)}
    quantise = fp8.quantise_rows

    def noted(x: torch.Tensor, out: tuple[torch.Tensor, torch.Tensor] | None = None) -> object:
        if out is not None:
            copied.extend(each.data_ptr() for each in x)
        return quantise(x, out)

    monkeypatch.setattr(fp8, "quantise_rows", noted)
    (a, b), left = ((case.a, 0.8), (case.b, -0.5)), set[tuple[str, str]]()
    for number, loras in enumerate(((a,), (b,), (a, b), (), (b,), ())):
        copied.clear()
        unet.patcher.apply(loras)
        adapted = {module for lora, _ in loras for module in lora.adapted}
        changed = [places[module] for module in adapted | left if places[module][0] in of_tokens]
        assert sorted(copied) == sorted(stack.weights[position].data_ptr() for stack, position in changed)
        seen.append(unet(tensors, str(number)))
        assert torch.equal(seen[-1], emulated(case, tensors, *loras))
        assert torch.equal(seen[-1], seen[0]) == (not loras)
        left = adapted
    assert torch.equal(seen[2], seen[5]), "B is B, whatever was in before"


def test_a_patch_that_failed_is_repaired_by_the_next(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, tensors = unet_of(case), inputs(case, 2)
    before = unet(tensors, "before")
    unet.patcher.apply([(case.a, 1.0)])
    patched = patcher.WeightStack.patch
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(patcher.WeightStack, "patch", lambda *given: patched(*given) or 1 / 0)
        unet.patcher.apply([(case.b, 1.0)])
    unet.patcher.apply([])
    assert torch.equal(unet(tensors, "after"), before)


@pytest.mark.parametrize("captured", [False, True])
def test_loras_beside_the_weights_are_in_full_precision(case: Case, captured: bool) -> None:
    unet, tensors, loras = unet_of(case, captured=captured), inputs(case, 2), {"a": case.a}
    before = unet(tensors, "none")
    assert unet.beside is not None
    unet.beside.use([(("a", 0.8),), ()], loras.__getitem__)
    found = unet(tensors, "a")
    assert error(found, emulated(case, tensors, beside=(case.a, 0.8))) < NEAR
    assert error(found[:1], before[:1]) > 2 * NEAR
    unet.beside.use((), loras.__getitem__)
    assert torch.equal(unet(tensors, "none"), before)


@pytest.mark.parametrize("one_launch", [False, True])
def test_copies_never_move_and_of_self_attention_lie_together(case: Case, one_launch: bool) -> None:
    network = case.checkpoint.load_unet(CPU, torch.float32)
    fuse(network, ALL)
    of_weights = Patcher({"unet": network}, one_launch, in_place=True)
    copies = Fp8Copies(network, of_weights, "unet")
    for name, module in network.named_modules():
        if name.endswith("attn1"):
            joined = copies.joined("unet", [f"{name}.to_{letter}" for letter in "qkv"])
            assert joined is not None
            places = [module.get_submodule(f"to_{letter}").fp8.values.data_ptr() for letter in "qkv"]
            assert [part.data_ptr() for part in joined.values.chunk(3)] == places
            of_weights.apply([(case.b, 1.0)])
            assert places[0] == module.to_q.fp8.values.data_ptr()
            scaled = joined.values.float() * joined.scales[:, None]
            assert error(scaled, torch.cat([module.get_submodule(f"to_{letter}").weight for letter in "qkv"])) < 0.04


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("compile", "tensorrt"):
        with pytest.raises(ValueError, match=f"fp8 is on; wanted with it: runtime torch, not {name}"):
            Runtime(name, tmp_path, fp8=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A10G")
    with pytest.raises(Fp8UnavailableError, match=r"A10G has compute capability 8\.6; wanted: 8\.9 or later"):
        Runtime(fp8=True).prepare(torch.nn.Linear(1, 1), torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
    require_fp8(torch.device("cuda"))
