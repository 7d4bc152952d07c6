"""Patching in place: exact after any number of swaps, and without growing."""

from __future__ import annotations

import hashlib
import random
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoints
import lora_files
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules, adaptable_weights
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.lora.patching.weight_stack import WeightStack
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

CPU = torch.device("cpu")
SCALES = (0.5, 1.0, -0.75)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl"), depth=2))


@pytest.fixture(scope="module")
def loras(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[CanonicalLora]:
    """Over everything, over attention with mixed ranks, over every third module, LoHa, DoRA."""
    directory = tmp_path_factory.mktemp("loras")
    shapes = dict(BaseModules.of(checkpoint).shapes["unet"])
    weights = {("unet", name): weight.detach() for name, weight in adaptable_weights(load(checkpoint)).items()}
    some = {name: shape for number, (name, shape) in enumerate(shapes.items()) if number % 3 == 0}
    made = [
        lora_files.kohya({"unet": shapes}),
        lora_files.kohya(
            {"unet": {name: shape for name, shape in shapes.items() if "attn" in name}}, lambda n: n % 3 + 1
        ),
        lora_files.kohya({"unet": some}, seed=3, dtype=torch.float16),
        lora_files.loha({name: shape for name, shape in shapes.items() if "conv" in name}),
        lora_files.dora(lora_files.kohya({"unet": some}, seed=4), weights, "output"),
    ]
    canonicaliser = Canonicaliser(checkpoint)
    return [canonicaliser.read(one.save(directory / f"{number}.safetensors")) for number, one in enumerate(made)]


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return checkpoint.load_unet(CPU, dtype)


def copies(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}


def same(unet: torch.nn.Module, wanted: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(parameter, wanted[name]) for name, parameter in unet.named_parameters())


def fingerprint(unet: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for parameter in unet.parameters():
        digest.update(parameter.detach().numpy())
    return digest.hexdigest()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_ten_thousand_swaps_leave_nothing_behind(checkpoint: Checkpoint, loras: list[CanonicalLora]) -> None:
    unet = load(checkpoint)
    original = copies(unet)
    addresses = {name: weight.data_ptr() for name, weight in adaptable_weights(unet).items()}
    patcher = Patcher({"unet": unet})
    moved = {name: weight.data_ptr() for name, weight in adaptable_weights(unet).items()}
    choose = random.Random(0)
    seen: dict[tuple[tuple[int, float], ...], str] = {}
    after_thousand = 0
    for number in range(10_000):
        chosen = tuple(
            sorted((n, choose.choice(SCALES)) for n in choose.sample(range(len(loras)), choose.choice((0, 1, 1, 2))))
        )
        patcher.apply([(loras[n], scale) for n, scale in chosen])
        if number % 100 == 0:
            assert fingerprint(unet) == seen.setdefault(chosen, fingerprint(unet))
        if number == 1000:
            after_thousand = resident_bytes()
    grown = resident_bytes() - after_thousand
    assert grown < 4 * 2**20, f"{grown} bytes more"
    patcher.apply([])
    assert same(unet, original)
    assert {name: weight.data_ptr() for name, weight in adaptable_weights(unet).items()} == moved != addresses


@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(SCALES)), max_size=3, unique_by=lambda x: x[0])))
@settings(max_examples=25)
def test_a_set_gives_the_same_bits_whatever_came_before(
    checkpoint: Checkpoint, loras: list[CanonicalLora], sets: list[list[tuple[int, float]]]
) -> None:
    unet, fresh = load(checkpoint), load(checkpoint)
    patcher = Patcher({"unet": unet})
    last: list[tuple[CanonicalLora, float]] = []
    for chosen in sets:
        last = [(loras[n], scale) for n, scale in sorted(chosen)]
        patcher.apply(last)
    Patcher({"unet": fresh}).apply(last)
    assert same(unet, copies(fresh))


def test_weights_in_the_order_of_products_are_patched_in_as_few_pieces(
    checkpoint: Checkpoint, loras: list[CanonicalLora], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where q, k and v of a block are neighbours, LoRAs that go by stack are not cut into blocks."""
    pieces, patch_run = Counter[bool](), WeightStack._patch_run

    def counted(stack: WeightStack, *given: Any) -> None:
        pieces[stack.in_place] += 1
        patch_run(stack, *given)

    monkeypatch.setattr(WeightStack, "_patch_run", counted)
    models = {in_place: load(checkpoint) for in_place in (True, False)}
    patchers = {
        in_place: Patcher({"unet": model}, one_launch=False, in_place=in_place) for in_place, model in models.items()
    }
    attention = {name: shape for name, shape in BaseModules.of(checkpoint).shapes["unet"].items() if "attn" in name}
    loha = Canonicaliser(checkpoint).read(lora_files.loha(attention).save(tmp_path / "loha.safetensors"))
    for lora in (loha, loras[0], *loras[3:]):
        pieces.clear()
        for patcher in patchers.values():
            patcher.apply([(lora, 0.5)])
        wanted = copies(models[False])
        for name, parameter in models[True].named_parameters():
            torch.testing.assert_close(parameter, wanted[name], rtol=0, atol=1e-6)
        assert lora is loras[-1] or pieces[True] == pieces[False]  # the last one has every third module


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_rounded_once(
    checkpoint: Checkpoint, loras: list[CanonicalLora], dtype: torch.dtype
) -> None:
    unet, exact = load(checkpoint, dtype), load(checkpoint, dtype).float()
    original = copies(unet)
    patcher, chosen = Patcher({"unet": unet}), [(loras[0], 0.5), (loras[1], 1.0), (loras[2], -0.75)]
    patcher.apply(chosen)
    Patcher({"unet": exact}).apply(chosen)
    for name, weight in adaptable_weights(unet).items():
        wanted = adaptable_weights(exact)[name]
        assert (weight.float() - wanted).abs().max() <= wanted.abs().max() * torch.finfo(dtype).eps, name
    patcher.apply([])
    assert same(unet, original)


def test_only_the_modules_of_either_set_are_touched(checkpoint: Checkpoint, loras: list[CanonicalLora]) -> None:
    unet = load(checkpoint)
    patcher = Patcher({"unet": unet})
    patcher.apply([(loras[1], 1.0)])
    poison = {name: weight for name, weight in adaptable_weights(unet).items() if "resnets" in name}
    for weight in poison.values():
        weight.fill_(7.0)
    assert patcher.apply([(loras[1], 0.5)]) == loras[1].modules["unet"]
    patcher.apply([])
    assert all((weight == 7.0).all() for weight in poison.values())


def test_a_failure_half_way_is_repaired_by_the_next_set(
    checkpoint: Checkpoint, loras: list[CanonicalLora], monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = load(checkpoint)
    original, patcher = copies(unet), Patcher({"unet": unet})
    calls = iter(range(10))
    baddbmm = torch.baddbmm

    def fail_late(*arguments: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        if next(calls) == 5:
            raise MemoryError
        return baddbmm(*arguments, **options)

    monkeypatch.setattr(torch, "baddbmm", fail_late)
    with pytest.raises(MemoryError):
        patcher.apply([(loras[0], 1.0)])
    monkeypatch.undo()
    patcher.apply([])
    assert same(unet, original)


def test_a_canonical_file_is_what_was_read(checkpoint: Checkpoint, loras: list[CanonicalLora], tmp_path: Path) -> None:
    loras[4].save(tmp_path / "lora.safetensors")
    opened = CanonicalLora.open(tmp_path / "lora.safetensors")
    assert opened.modules == loras[4].modules
    for own, other in zip(opened.groups, loras[4].groups, strict=True):
        assert (own.modules, own.scales, own.form) == (other.modules, other.scales, other.form)
        assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in own.tensors.items())
