"""What fused networks save changes no more than roundings: with LoRAs in the weights or beside them, ControlNets,
prompts of zeros, as graphs; and each can be left off.

On the CPU, where the operators are their references, most of it keeps every bit.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import checkpoints
import lora_files
from fused_runtime import FusedRuntime, on_tape
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks import runtimes, warm_up
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.fused_attention import FusedAttention
from swiftdiffusion.python_backends.networks.fused_modules import FusedResnetBlock2D, fuse
from swiftdiffusion.python_backends.networks.prompt_projections import leading_zeros
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from swiftdiffusion.python_backends.networks.savings import ALL, EXACT, NONE, Savings
from swiftdiffusion.python_backends.networks.unet import UNet, arguments, example
from swiftdiffusion.python_backends.networks.unet_halves import EncoderHalf, residual_size, shares_layers
from tape import Tape

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
ROUNDINGS = 2e-6
ALONE = [replace(EXACT, **{each.name: True}) for each in fields(Savings)]
"""Each beside that without which some others are nothing."""


class Case(NamedTuple):
    checkpoint: Checkpoint
    plain: UNet
    loras: dict[str, CanonicalLora]
    linear: dict[str, CanonicalLora]


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp(request.param)
    checkpoint = Checkpoint(getattr(checkpoints, request.param)(directory / "checkpoint", depth=2))
    shapes, read = BaseModules.of(checkpoint).shapes["unet"], Canonicaliser(checkpoint).read

    def loras(names: dict[str, tuple[int, ...]], *seeds: int) -> dict[str, CanonicalLora]:
        files = {seed: lora_files.kohya({"unet": names}, seed=seed) for seed in seeds}
        return {f"{seed:016x}": read(file.save(directory / f"{seed}.safetensors")) for seed, file in files.items()}

    linear = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    plain = UNet(checkpoint, CPU, torch.float32, Runtime(savings=NONE))
    return Case(checkpoint, plain, loras(dict(shapes), 1, 2), loras(linear, 3, 4))


def captured(case: Case, savings: Savings) -> UNet:
    return on_tape(lambda: UNet(case.checkpoint, CPU, torch.float32, FusedRuntime(savings=savings), most_rows=4))


def inputs(case: Case, rows: int, zeros: int = 0, seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(each.shape, generator=random).abs() for name, each in example(case.checkpoint, rows).items()
    }
    tensors["LATENTS"] = torch.randn(rows, case.checkpoint.unet_channels, 8, 8, generator=random)
    tensors["ENCODER_HIDDEN_STATES"][:zeros] = 0
    return tensors


def assert_same(found: torch.Tensor, wanted: torch.Tensor, savings: Savings) -> None:
    if savings.biases:
        assert_near(found, wanted)
    else:
        assert torch.equal(found, wanted)


def assert_near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found - wanted).norm() <= ROUNDINGS * wanted.norm()


@pytest.mark.parametrize("savings", [NONE, EXACT, *ALONE, ALL], ids=str)
def test_each_keeps_the_picture(case: Case, savings: Savings) -> None:
    unet = captured(case, savings)
    for rows, zeros in ((2, 0), (2, 1), (1, 0), (1, 1), (4, 2), (4, 1), (3, 0), (2, 1)):
        for seed in range(2):
            tensors = inputs(case, rows, zeros, seed)
            assert_same(unet(tensors, "none"), case.plain(tensors), savings)


@pytest.mark.parametrize("savings", [replace(EXACT, norms=True, shared_layers=True), ALL], ids=str)
@pytest.mark.parametrize("rows", [2, 4])
def test_halves_that_differ_by_their_prompts(case: Case, savings: Savings, rows: int) -> None:
    """What comes before the first prompts is computed for one of them, where nothing else differs."""
    tensors = inputs(case, rows)
    for name in ("LATENTS", "TIMESTEPS"):
        tensors[name] = tensors[name][: rows // 2].repeat(2, *[1] * (tensors[name].ndim - 1))
    given: list[int] = []
    unet = captured(case, savings)
    first = unet._halves[0]
    unet._halves = (lambda *taken: given.append(len(taken[0])) or first(*taken)), unet._halves[1]
    for _ in range(2):
        assert_near(unet.decode(unet.encode(tensors, "none", halves_alike=True)), case.plain(tensors))
    assert given == [rows if "TEXT_EMBEDS" in tensors else rows // 2] * 2
    tensors["ENCODER_HIDDEN_STATES"][: rows // 2] = 0
    assert_near(unet.decode(unet.encode(tensors, "none", halves_alike=True)), case.plain(tensors))


class Operators(TorchDispatchMode):
    """Counts them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.made = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def operators(case: Case, savings: Savings) -> Counter[str]:
    """Of a step without graphs."""
    unet = case.checkpoint.load_unet(CPU, torch.float32)
    fuse(unet, savings)
    running = on_tape(lambda: FusedRuntime(savings=savings).unet(unet, CPU, torch.float32))
    given = arguments(inputs(case, 2), CPU, torch.float32)
    assert running.modules is not None and running.prompts is not None
    encoder, decoder = running.modules
    with torch.inference_mode(), Operators() as operators:
        prompts = running.prompts(given[2])
        decoder(prompts, *encoder(*given[:2], prompts, *given[3:]))
    return operators.made


def test_each_is_at_work(case: Case) -> None:
    """Or the others would compare diffusers' modules with themselves."""
    made = {savings: operators(case, savings) for savings in (NONE, EXACT, *ALONE)}
    of_exact = made[EXACT]
    assert of_exact["aten::div"] < made[NONE]["aten::div"]
    for name, fewer, ours in (
        ("qkv", "aten::linear", None),
        ("norms", "aten::native_layer_norm", "swiftdiffusion::add_layer_norm"),
        ("biases", "aten::convolution", "swiftdiffusion::bias_residual"),
        ("times", "aten::silu", None),
    ):
        found = made[replace(EXACT, **{name: True})]
        if ours is None:
            assert found[fewer] < of_exact[fewer], name
        else:
            assert found[ours] and not of_exact[ours], name
    unet = case.checkpoint.load_unet(CPU, torch.float32)
    fuse(unet, ALL)
    running = on_tape(lambda: FusedRuntime().unet(unet, CPU, torch.float32))
    attentions = [each for each in unet.modules() if isinstance(each, FusedAttention)]
    assert all((each.qkv is None) == each.is_cross_attention for each in attentions) and attentions
    blocks = [each for each in unet.modules() if isinstance(each, FusedResnetBlock2D)]
    assert all(each.of_time is not None and each.joins_biases for each in blocks) and blocks
    assert running.prompts is not None and running.prompts.skips_zeros


def test_loras_in_the_weights_and_back(case: Case) -> None:
    (a, b), unet = case.loras.values(), captured(case, ALL)
    tensors = inputs(case, 4, 2)
    before = unet(tensors, "none")
    for number, loras in enumerate(([(a, 0.8)], [(b, 1.0), (a, -0.5)], [])):
        for each in (unet, case.plain):
            each.patcher.apply(loras)
        assert_same(unet(tensors, str(number)), case.plain(tensors), ALL)
        assert torch.equal(unet(tensors, str(number)), before) == (not loras)


@pytest.mark.parametrize("is_captured", [False, True])
def test_rows_with_loras_beside_the_weights(case: Case, is_captured: bool) -> None:
    """Of convolutions too, where graphs are not captured: as on a GPU."""
    loras = case.linear if is_captured else case.loras
    a, b = (((key, 0.8),) for key in loras)
    unet = captured(case, ALL) if is_captured else UNet(case.checkpoint, CPU, torch.float32, FusedRuntime())
    tensors = inputs(case, 4, 2)
    for sets in ([a, (), a, b], [(), (), (), ()], [b, b, a, ()]):
        found = []
        for each in (unet, case.plain):
            assert each.beside is not None
            each.beside.use(sets if any(sets) else (), loras.__getitem__)
            found.append(each(tensors, repr(sets)))
            each.beside.use((), loras.__getitem__)
        assert_same(*found, ALL)


def test_residuals_of_controlnets(case: Case) -> None:
    unet, tensors = captured(case, ALL), inputs(case, 2, 1)
    found = []
    for each in (unet, case.plain):
        encoded = each.encode(tensors, "none")
        residuals = torch.randn(2, residual_size(encoded.halfway), generator=torch.Generator().manual_seed(0))
        found.append(each.decode(encoded, residuals))
    assert_same(*found, ALL)


def test_what_a_load_captures_serves_every_batch_of_whole_requests(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tapes: list[Tape] = []
    monkeypatch.setitem(runtimes.RECORDERS, "cpu", lambda device: tapes.append(Tape(device)) or tapes[-1])
    unet = UNet(case.checkpoint, CPU, torch.float32, FusedRuntime(), most_rows=16)
    before = sum(tape.recorded for tape in tapes)
    assert before
    height, width = (side // case.checkpoint.vae_scale_factor for side in case.checkpoint.default_size)
    every = range(2, 17, 2)
    batches = [
        (rows, zeros) for rows in every for zeros in ((0, 1, rows // 2) if case.checkpoint.pooled_width else (0,))
    ]
    for rows, zeros in [(1, 0), *batches, (1, int(case.checkpoint.pooled_width is not None))]:
        tensors = inputs(case, rows, zeros)
        latents = torch.randn(rows, case.checkpoint.unet_channels, height, width)
        for alike in (False, rows % 2 == 0):
            unet.decode(unet.encode(tensors | {"LATENTS": latents}, "none", halves_alike=alike))
    assert sum(tape.recorded for tape in tapes) == before


def test_what_there_is_no_memory_for_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    free, evaluated = iter((0.6, 0.4, 0.2)), list[int]()
    monkeypatch.setattr(warm_up, "free_share", lambda _: next(free))
    warm_up.capture_ahead(10, evaluated.append, CPU, tunes=True)
    assert evaluated == [1, 2, 4, 6, 1, 2], "those of a single request last, so that they go last"
    assert warm_up.rows_of_requests(5) == [1, 2, 4]
    assert warm_up.rows_of_requests(128)[-1] == warm_up.AHEAD_ROWS


def test_shared_layers_keep_the_layout(case: Case) -> None:
    unet = case.checkpoint.load_unet(CPU, torch.float32)
    fuse(unet, ALL)
    unet.to(memory_format=torch.channels_last)
    if not shares_layers(unet):
        return
    latents, *given = arguments(inputs(case, 4), CPU, torch.float32)
    with torch.inference_mode():
        for tensor in EncoderHalf(unet)(latents[:2], *given):
            assert tensor.ndim != 4 or tensor.is_contiguous(memory_format=torch.channels_last)


def test_blocks_of_another_kind_have_projections_of_their_own(tmp_path: Path) -> None:
    """ResnetDownsampleBlock2D has blocks that are no FusedResnetBlock2D."""
    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "CrossAttnUpBlock2D"),
    }
    checkpoint = Checkpoint(checkpoints.sd15(tmp_path / "sd15", depth=2, **kinds))
    tensors = {name: torch.rand_like(each) for name, each in example(checkpoint, 2).items()}
    plain = UNet(checkpoint, CPU, torch.float32, Runtime(savings=NONE))
    fused = on_tape(lambda: UNet(checkpoint, CPU, torch.float32, FusedRuntime()))
    assert_near(fused(tensors), plain(tensors))


def test_rows_of_zeros_are_left_out_where_they_are_a_half_or_all() -> None:
    def zeros(*rows: int) -> int:
        embeddings = torch.tensor(rows)[:, None, None].expand(-1, 2, 3).clone()
        embeddings[:, 1] = 0
        return leading_zeros(embeddings)

    assert [zeros(0, 1), zeros(0), zeros(0, 0, 1, 1), zeros(0, 0)] == [1, 1, 2, 2]
    assert [zeros(1), zeros(1, 0), zeros(0, 1, 1), zeros(0, 0, 1), zeros(0, 1, 0, 1)] == [0, 0, 0, 0, 0]


def test_projections_lie_beside_each_other_and_stay_patchable(case: Case) -> None:
    unet = case.checkpoint.load_unet(CPU, torch.float32)
    fuse(unet, ALL)
    patcher = Patcher({"unet": unet}, in_place=True)
    for name, module in unet.named_modules():
        if isinstance(module, FusedAttention) and not module.is_cross_attention:
            layers = [f"{name}.{layer}" for layer in ("to_q", "to_k", "to_v")]
            joined = patcher.joined("unet", layers)
            assert joined is not None
            for layer, part in zip(layers, joined.chunk(3), strict=True):
                assert part.data_ptr() == unet.get_submodule(layer).weight.data_ptr()
    assert Patcher({"unet": unet}).joined("unet", layers) is None, "modules are pointed to other weights"
