"""The GPU runtime: fused channels-last networks as CUDA graphs, against diffusers' modules in float64 on the CPU."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import checkpoints
import lora_files
from swiftdiffusion.python_backends.controlnets.network import ControlNet
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks import cuda_graphs
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from swiftdiffusion.python_backends.networks.savings import ALL, EXACT, NONE, Savings
from swiftdiffusion.python_backends.networks.token_masks import token_mask
from swiftdiffusion.python_backends.networks.token_stacks import MaskedRows
from swiftdiffusion.python_backends.networks.unet import UNet, arguments
from swiftdiffusion.python_backends.networks.unet_halves import DecoderHalf, EncoderHalf, join, residual_size
from swiftdiffusion.python_backends.request.completed import ControlNetUse

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
NAMES = [field.name for field in fields(Savings)]


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(getattr(checkpoints, request.param)(tmp_path_factory.mktemp(request.param) / "checkpoint"))


def inputs(checkpoint: Checkpoint, rows: int, side: int = 16) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(rows)
    tensors = {
        "LATENTS": torch.randn(rows, 4, side, side, generator=random),
        "TIMESTEPS": torch.arange(rows)[:, None] * 100.0 + 7,
        "ENCODER_HIDDEN_STATES": torch.randn(rows, *checkpoint.text_embedding_shape, generator=random),
    }
    if checkpoint.pooled_width is not None:
        pooled = torch.randn(rows, checkpoint.pooled_width, generator=random)
        tensors |= {"TEXT_EMBEDS": pooled, "TIME_IDS": torch.full((rows, 6), 64.0)}
    return tensors


def exact(
    network: torch.nn.Module, tensors: dict[str, torch.Tensor], residuals: torch.Tensor | None = None
) -> torch.Tensor:
    """The prediction of diffusers' modules in float64."""
    given = tuple(tensor.double() for tensor in arguments(tensors, CPU, torch.float64))
    halfway = EncoderHalf(network)(*given)
    if residuals is not None:
        join(halfway, residuals)
    return DecoderHalf(network)(given[2], *halfway)


def error(result: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((result.cpu().double() - wanted).norm() / wanted.norm())


@DTYPES
@torch.no_grad()
def test_every_shape_joins_and_replays(
    checkpoint: Checkpoint, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "GRAPHS", 2)
    unet, reference = UNet(checkpoint, GPU, dtype), checkpoint.load_unet(CPU, torch.float64)
    for rows, side in ((2, 16), (1, 16), (3, 16), (2, 24), (2, 16), (1, 20), (2, 15), (1, 17)):
        tensors = inputs(checkpoint, rows, side)
        assert error(unet(tensors), exact(reference, tensors)) < TOLERANCE[dtype]
        encoded = unet.encode(tensors)
        residuals = torch.randn(rows, residual_size(encoded.halfway), generator=torch.Generator().manual_seed(0))
        result = unet.decode(encoded, residuals)
        assert error(result, exact(reference, tensors, residuals.double())) < TOLERANCE[dtype]


@torch.no_grad()
@pytest.mark.parametrize("savings", [NONE, EXACT, *(replace(EXACT, **{name: True}) for name in NAMES), ALL], ids=str)
def test_each_saving(checkpoint: Checkpoint, savings: Savings) -> None:
    """With prompts of zeros, as SDXL's empty negative prompts are, and halves that differ by their prompts alone."""
    unet = UNet(checkpoint, GPU, torch.float16, Runtime(savings=savings), most_rows=4)
    reference = checkpoint.load_unet(CPU, torch.float64)
    for rows, zeros in ((2, 0), (2, 1), (1, 1), (4, 2), (4, 0), (3, 0)):
        tensors = inputs(checkpoint, rows)
        tensors["ENCODER_HIDDEN_STATES"][:zeros] = 0
        for name in ("LATENTS", "TIMESTEPS"):
            tensors[name][rows - rows // 2 :] = tensors[name][: rows // 2]
        wanted = exact(reference, tensors)
        for alike in (False, rows % 2 == 0):
            for _ in range(2):
                found = unet.decode(unet.encode(tensors, "none", halves_alike=alike))
                assert error(found, wanted) < TOLERANCE[torch.float16]


@torch.no_grad()
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with e4m3"
)
def test_graphs_of_8_bit_floats_see_loras_and_their_end(checkpoint: Checkpoint, tmp_path: Path) -> None:
    unet = UNet(checkpoint, GPU, torch.float16, Runtime(fp8=True), most_rows=4)
    on_cpu = UNet(checkpoint, CPU, torch.float32, Runtime(fp8=True))
    made = lora_files.kohya({"unet": dict(BaseModules.of(checkpoint).shapes["unet"])})
    lora = Canonicaliser(checkpoint).read(made.save(tmp_path / "a.safetensors"))
    tensors, found = inputs(checkpoint, 2), list[torch.Tensor]()
    tensors["ENCODER_HIDDEN_STATES"][:1] = 0
    for number, loras in enumerate(([], [(lora, 0.8)], [])):
        for each in (unet, on_cpu):
            each.patcher.apply(loras)
        found.append(unet(tensors, str(number)))
        assert error(found[-1], on_cpu(tensors, str(number)).double()) < TOLERANCE[torch.bfloat16]
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


@DTYPES
@torch.no_grad()
@pytest.mark.parametrize("kind", ["factors", "norms and biases"])
def test_graphs_see_loras_that_are_patched_in_later(
    checkpoint: Checkpoint, dtype: torch.dtype, kind: str, tmp_path: Path
) -> None:
    unet, reference = UNet(checkpoint, GPU, dtype), checkpoint.load_unet(CPU, torch.float64)
    on_cpu = checkpoint.load_unet(CPU, torch.float32)
    tensors = inputs(checkpoint, 2)
    before = unet(tensors)
    modules = BaseModules.of(checkpoint)
    if kind == "factors":
        made = lora_files.kohya({"unet": dict(modules.shapes["unet"])})
    else:
        made = lora_files.differences({}, {"unet": modules.vectors["unet"]})
    lora = Canonicaliser(checkpoint).read(made.save(tmp_path / "a.safetensors"))
    unet.patcher.apply([(lora, 0.8)])
    Patcher({"unet": on_cpu}).apply([(lora, 0.8)])
    reference.load_state_dict(on_cpu.state_dict())
    patched = unet(tensors)
    assert error(patched, exact(reference, tensors)) < TOLERANCE[dtype]
    assert not torch.equal(patched, before)
    unet.patcher.apply([])
    assert torch.equal(unet(tensors), before)


@DTYPES
@torch.no_grad()
def test_rows_have_loras_of_their_own_beside_the_weights(
    checkpoint: Checkpoint, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Sets come and go under the same graphs; the error is that of the same LoRAs in the weights."""
    unet, on_cpu = UNet(checkpoint, GPU, dtype), checkpoint.load_unet(CPU, torch.float32)
    patcher, reference = Patcher({"unet": on_cpu}), checkpoint.load_unet(CPU, torch.float64)
    shapes = {name: shape for name, shape in BaseModules.of(checkpoint).shapes["unet"].items() if "attn" in name}
    read = Canonicaliser(checkpoint).read
    loras = {
        f"{seed:016x}": read(lora_files.kohya({"unet": shapes}, seed=seed).save(tmp_path / f"{seed}.safetensors"))
        for seed in range(3)
    }
    first, second, third = (((key, 0.8),) for key in loras)
    tensors = inputs(checkpoint, 4)
    assert unet.beside is not None
    prepared = {key: unet.patcher.prepare(lora) for key, lora in loras.items()}
    for sets in ([first, first, second, ()], [third, (), first, second]):
        unet.beside.use(sets, prepared.__getitem__)
        together = unet(tensors)
        for row, each in enumerate(sets):
            patcher.apply([(loras[key], scale) for key, scale in each])
            reference.load_state_dict(on_cpu.state_dict())
            alone = {name: tensor[row : row + 1] for name, tensor in tensors.items()}
            assert error(together[row : row + 1], exact(reference, alone)) < TOLERANCE[dtype]
    unet.beside.use([], prepared.__getitem__)


@DTYPES
@torch.no_grad()
def test_masked_tokens_by_what_the_same_inputs_gave(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Two masks and a row that computes all share a call; what is captured for one entry serves others."""
    unet, reference = UNet(checkpoint, GPU, dtype), checkpoint.load_unet(CPU, torch.float64)
    stacks, levels = unet.stacks, len(reference.config.block_out_channels)
    assert stacks is not None
    for seed, side in ((0, 16), (1, 16), (2, 17), (0, 16)):
        tensors = inputs(checkpoint, 4, side)
        tensors["LATENTS"] += seed
        with stacks.recorded(range(4)) as values:
            assert error(unet(tensors, "none"), exact(reference, tensors)) < TOLERANCE[dtype]
        parts = [MaskedRows(slice(0, 1))]
        for begin, end, edge in ((1, 3, 5), (3, 4, 9)):
            mask = torch.zeros(side, side)
            mask[1 : 1 + edge, 2 : 2 + edge] = 1
            places = token_mask(mask, levels).to(GPU).places
            known = [torch.stack(block[begin:end]) for block in values]
            repeated = {key: each.repeat(end - begin, 1) for key, each in places.items()}
            parts.append(MaskedRows(slice(begin, end), repeated, partial(_filled, known)))
        with stacks.recorded([0]) as own, stacks.masked(parts):
            result = unet(tensors, "none")
        assert error(result, exact(reference, tensors)) < TOLERANCE[dtype]
        assert all(torch.isfinite(block[0]).all() for block in own)
        with stacks.masked([replace(part, known=lambda _number, out: out.zero_()) for part in parts]):
            assert not torch.equal(unet(tensors, "none"), result)


def _filled(known: list[torch.Tensor], number: int, out: torch.Tensor) -> torch.Tensor:
    return out.copy_(known[number])


@DTYPES
@torch.no_grad()
def test_prompts_that_are_kept(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Batches of other sizes and prompts in between, with LoRAs' names and without: as if nothing were kept."""
    unet = UNet(checkpoint, GPU, dtype)
    batches = [inputs(checkpoint, rows) for rows in (2, 1, 4, 2, 3, 1)]
    wanted = [unet(each) for each in batches]
    for weights in ("none", "none", "others"):
        for each, prediction in zip(batches, wanted, strict=True):
            assert torch.equal(unet(each, weights), prediction)
            on_gpu = {name: tensor.to(GPU) for name, tensor in each.items()}  # as no shard has them
            assert torch.equal(unet(on_gpu, weights), prediction)


@DTYPES
@torch.no_grad()
def test_a_controlnet(checkpoint: Checkpoint, dtype: torch.dtype, tmp_path: Path) -> None:
    path = checkpoints.controlnet(checkpoint.path, tmp_path / "controlnet", 0)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    networks = [
        ControlNet(path, checkpoint, device, of, lambda _: image) for device, of in ((GPU, dtype), (CPU, torch.float32))
    ]
    tensors = inputs(checkpoint, 2)
    uses = [ControlNetUse("x", ("a" * 64,), scale, 0.0, 1.0, False) for scale in (0.5, 1.0)]
    for _ in range(2):
        (ours, failures), (wanted, _) = (network(tensors, uses) for network in networks)
        assert not failures
        assert error(ours.cpu(), wanted.double()) < TOLERANCE[dtype]
