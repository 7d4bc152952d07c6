"""LoRAs beside the weights give what the same LoRAs in the weights give, each row its own."""

from __future__ import annotations

import pytest
import torch

import checkpoints
import lora_files
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.lora_set import LoraSet
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.lora.patching.beside import BesideLoras, zeros
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.token_masks import token_mask
from swiftdiffusion.python_backends.networks.token_stacks import MaskedRows
from swiftdiffusion.python_backends.networks.unet import UNet

CPU = torch.device("cpu")
KEYS = {name: f"{number:016x}" for number, name in enumerate(("everything", "attention", "convolutions", "loha"))}


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(getattr(checkpoints, request.param)(tmp_path_factory.mktemp(request.param), depth=2))


@pytest.fixture(scope="module")
def loras(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CanonicalLora]:
    """By key: of one rank over all modules, of several ranks over attention, over convolutions alone; one LoHa."""
    directory = tmp_path_factory.mktemp("loras")
    shapes = BaseModules.of(checkpoint).shapes["unet"]

    def some(part: str) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in shapes.items() if part in name}

    made = {
        "everything": lora_files.kohya({"unet": dict(shapes)}),
        "attention": lora_files.kohya({"unet": some("attn")}, lambda number: number % 3 + 1, seed=2),
        "convolutions": lora_files.kohya({"unet": some("conv")}, seed=3),
        "loha": lora_files.loha(some("conv")),
    }
    read = Canonicaliser(checkpoint).read
    return {KEYS[name]: read(lora.save(directory / f"{name}.safetensors")) for name, lora in made.items()}


@pytest.fixture(scope="module")
def unet(checkpoint: Checkpoint) -> UNet:
    return UNet(checkpoint, CPU, torch.float32)


def inputs(checkpoint: Checkpoint, rows: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(rows)
    tensors = {
        "LATENTS": torch.randn(rows, 4, 8, 8, generator=random),
        "TIMESTEPS": torch.arange(rows)[:, None] * 100.0 + 7,
        "ENCODER_HIDDEN_STATES": torch.randn(rows, *checkpoint.text_embedding_shape, generator=random),
    }
    if checkpoint.pooled_width is not None:
        pooled = torch.randn(rows, checkpoint.pooled_width, generator=random)
        tensors |= {"TEXT_EMBEDS": pooled, "TIME_IDS": torch.full((rows, 6), 64.0)}
    return tensors


def use(unet: UNet, loras: dict[str, CanonicalLora], sets: list[LoraSet]) -> None:
    assert unet.beside is not None
    unet.beside.use(sets, loras.__getitem__)


def test_every_row_has_its_own_set(checkpoint: Checkpoint, loras: dict[str, CanonicalLora], unet: UNet) -> None:
    everything, attention, convolutions = (KEYS[name] for name in ("everything", "attention", "convolutions"))
    sets: list[LoraSet] = [
        ((everything, 0.7),),
        ((everything, 0.7),),
        (),
        ((attention, 1.0), (convolutions, -0.5)),
        ((convolutions, 2.0),),
        ((everything, -0.3), (attention, 1.0)),
    ]
    tensors = inputs(checkpoint, len(sets))
    use(unet, loras, sets)
    together = unet(tensors)
    use(unet, loras, [])
    for row, each in enumerate(sets):
        unet.patcher.apply([(loras[key], scale) for key, scale in each])
        alone = unet({name: tensor[row : row + 1] for name, tensor in tensors.items()})
        unet.patcher.apply([])
        bare = unet({name: tensor[row : row + 1] for name, tensor in tensors.items()})
        assert (together[row] - alone[0]).abs().max() <= 1e-4 * alone.abs().max()
        assert bool(each) == ((alone - bare).abs().max() > 1e-3 * alone.abs().max())


def test_every_row_has_its_own_set_where_transformers_take_them_in_parts(
    checkpoint: Checkpoint, loras: dict[str, CanonicalLora], unet: UNet
) -> None:
    everything, attention, convolutions = (KEYS[name] for name in ("everything", "attention", "convolutions"))
    sets: list[LoraSet] = [((everything, 0.7),), (), ((convolutions, 2.0), (attention, 1.0)), ((everything, 0.7),)]
    stacks, tensors = unet.stacks, inputs(checkpoint, len(sets))
    assert stacks is not None
    mask = torch.zeros(8, 8)
    mask[1:5, 2:6] = 1
    places = token_mask(mask, 1 + max(stacks.levels)).places

    def part(begin: int, end: int) -> MaskedRows:
        def known(number: int, out: torch.Tensor) -> torch.Tensor:
            return out.copy_(torch.stack(values[number][begin:end]))

        repeated = {side: each.repeat(end - begin, 1) for side, each in places.items()}
        return MaskedRows(slice(begin, end), repeated, known)

    use(unet, loras, sets)
    with stacks.recorded(range(len(sets))) as values:
        wanted = unet.decode(unet.encode(tensors, traced=False))
    with stacks.masked([MaskedRows(slice(0, 1)), part(1, 3), part(3, 4)]):
        found = unet.decode(unet.encode(tensors, traced=False))
    again = unet.decode(unet.encode(tensors, traced=False))
    use(unet, loras, [])
    assert torch.equal(again, wanted)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_sets_come_and_go_beside_a_patched_one(
    checkpoint: Checkpoint, loras: dict[str, CanonicalLora], unet: UNet
) -> None:
    """Differences from the patched set have negative scales; slots are filled anew and grow."""
    everything, attention = KEYS["everything"], KEYS["attention"]
    tensors = inputs(checkpoint, 2)
    expected = {}
    for key in (everything, attention):
        unet.patcher.apply([(loras[key], 1.0)])
        expected[key] = unet(tensors)
    unet.patcher.apply([(loras[everything], 1.0)])
    for scale in (0.1, 0.2, 0.3, 1.0):
        use(unet, loras, [(), ((everything, -1.0), (attention, scale))])
        mixed = unet(tensors)
    use(unet, loras, [])
    assert torch.equal(unet(tensors), expected[everything])
    unet.patcher.apply([])
    assert (mixed[0] - expected[everything][0]).abs().max() <= 1e-4 * mixed.abs().max()
    assert (mixed[1] - expected[attention][1]).abs().max() <= 1e-4 * mixed.abs().max()


def test_without_sets_nothing_is_left(checkpoint: Checkpoint, loras: dict[str, CanonicalLora], unet: UNet) -> None:
    tensors = inputs(checkpoint, 2)
    before = unet(tensors)
    use(unet, loras, [((KEYS["everything"], 1.0),), ()])
    assert not torch.equal(unet(tensors), before)
    use(unet, loras, [])
    assert torch.equal(unet(tensors), before)


def test_only_low_rank_loras_are_taken(loras: dict[str, CanonicalLora], unet: UNet) -> None:
    assert unet.beside is not None
    ranks = {name: unet.beside.rank(loras[key]) for name, key in KEYS.items()}
    assert ranks["loha"] is None
    assert ranks["attention"] == 3
    assert all(rank for name, rank in ranks.items() if name != "loha")


def test_what_has_no_room_is_not_taken(checkpoint: Checkpoint) -> None:
    module = checkpoint.load_unet(CPU, torch.float32)
    patcher = Patcher({"unet": module})
    of_a_rank = 4 * sum(sum(stack.weights.shape[1:]) for stack, _ in patcher.places.values())
    beside = BesideLoras(module, patcher, 64 * of_a_rank)
    assert beside.fits([16, 16, 16, 16]) and beside.fits([32, 5])
    assert not beside.fits([16] * 5) and not beside.fits([33, 5])


def test_zeros_change_nothing(checkpoint: Checkpoint, unet: UNet) -> None:
    tensors = inputs(checkpoint, 2)
    before = unet(tensors)
    assert isinstance(unet.patcher, Patcher)
    nothing = zeros(unet.patcher, 16)
    use(unet, {KEYS["loha"]: nothing}, [((KEYS["loha"], 1.0),), ()])
    assert (unet(tensors) - before).abs().max() <= 1e-5 * before.abs().max()
    use(unet, {}, [])
    unet.patcher.apply([(nothing, 1.0)])
    assert torch.equal(unet(tensors), before)
    unet.patcher.apply([])
