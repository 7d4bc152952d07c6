"""What LoRAs make of a graph's initializers is what the patcher makes of the network's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import checkpoints
import lora_files
from swiftdiffusion.export.onnx.weight_map import TRANSPOSED, MappedWeight, WeightMap
from swiftdiffusion.python_backends.checkpoint import Checkpoint
from swiftdiffusion.python_backends.lora.canonical import Canonicaliser, CanonicalLora
from swiftdiffusion.python_backends.lora.modules import BaseModules, adaptable_weights
from swiftdiffusion.python_backends.lora.patcher import Patcher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl") / "checkpoint"))


@pytest.fixture(scope="module")
def loras(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[CanonicalLora]:
    """Over everything, over every third module in float16, LoHa over convolutions, LoKr, DoRA of both kinds."""
    directory = tmp_path_factory.mktemp("loras")
    shapes = dict(BaseModules.of(checkpoint).shapes["unet"])
    weights = {
        ("unet", name): weight for name, weight in adaptable_weights(checkpoint.load_unet(CPU, torch.float32)).items()
    }
    some = {name: shape for number, (name, shape) in enumerate(shapes.items()) if number % 3 == 0}
    made = [
        lora_files.kohya(BaseModules.of(checkpoint).shapes),
        lora_files.kohya({"unet": some}, seed=3, dtype=torch.float16),
        lora_files.loha({name: shape for name, shape in shapes.items() if "conv" in name}),
        lora_files.lokr({name: shape for name, shape in shapes.items() if "attn" in name}, True, False),
        lora_files.dora(lora_files.kohya({"unet": some}, seed=4), weights, "output"),
        lora_files.dora(lora_files.kohya({"unet": some}, seed=5), weights, "input"),
    ]
    canonicaliser = Canonicaliser(checkpoint)
    return [canonicaliser.read(one.save(directory / f"{number}.safetensors")) for number, one in enumerate(made)]


def mapped(weights: dict[str, torch.Tensor]) -> WeightMap:
    """Linear weights transposed, convolutions as they are."""
    places = {
        name: MappedWeight(
            f"{name}.weight{TRANSPOSED if weight.ndim == 2 else ''}", weight.ndim == 2, tuple(weight.shape)
        )
        for name, weight in weights.items()
    }
    return WeightMap("unet", places)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 2e-3)])
@pytest.mark.parametrize("chosen", [(0,), (2,), (3,), (4,), (5,), (1, 0), (0, 5, 1, 3)])
def test_refit_tensors_are_the_patched_weights(
    checkpoint: Checkpoint, loras: list[CanonicalLora], chosen: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    weights = adaptable_weights(checkpoint.load_unet(CPU, dtype))
    places = mapped(weights)
    pristine = {place.initializer: place.as_initializer(weights[name]) for name, place in places.weights.items()}
    chosen_loras = [(loras[number], 0.75 if number else -0.5) for number in chosen]

    tensors = places.refit_tensors(chosen_loras, pristine)

    unet = checkpoint.load_unet(CPU, dtype)
    assert Patcher({"unet": unet}).apply(chosen_loras) == len(tensors)
    assert places.initializers(chosen_loras) == tensors.keys()
    for name, weight in adaptable_weights(unet).items():
        place = places.weights[name]
        tensor = tensors.get(place.initializer, pristine[place.initializer])
        assert tensor.dtype == dtype and tensor.is_contiguous()
        bound = tolerance * weight.abs().max().item()
        torch.testing.assert_close(place.as_module(tensor), weight, rtol=0, atol=bound, msg=name)


def test_what_the_last_set_changed_is_restored(checkpoint: Checkpoint, loras: list[CanonicalLora]) -> None:
    weights = adaptable_weights(checkpoint.load_unet(CPU, torch.float32))
    places = mapped(weights)
    pristine = {place.initializer: place.as_initializer(weights[name]) for name, place in places.weights.items()}
    first, second = places.refit_tensors([(loras[0], 1.0)], pristine), places.refit_tensors([(loras[1], 1.0)], pristine)
    assert first.keys() == pristine.keys() > second.keys()
    swapped = places.refit_tensors([(loras[1], 1.0)], pristine, refitted=first)
    assert swapped.keys() == first.keys()
    for name, tensor in swapped.items():
        assert torch.equal(tensor, second.get(name, pristine[name]))
    back = places.refit_tensors([], pristine, refitted=swapped)
    assert all(torch.equal(tensor, pristine[name]) for name, tensor in back.items())
    assert back.keys() == pristine.keys()


def test_a_graph_takes_its_own_part_of_a_set(checkpoint: Checkpoint, loras: list[CanonicalLora]) -> None:
    weights = adaptable_weights(checkpoint.load_unet(CPU, torch.float32))
    whole = mapped(weights)
    half = WeightMap("unet", {name: place for name, place in whole.weights.items() if name.startswith("up_blocks")})
    pristine = {place.initializer: place.as_initializer(weights[name]) for name, place in half.weights.items()}
    assert half.refit_tensors([(loras[0], 1.0)], pristine).keys() == pristine.keys()
    assert not WeightMap("vae", whole.weights).refit_tensors([(loras[0], 1.0)], {})


def test_a_saved_map_is_what_was_saved(checkpoint: Checkpoint, tmp_path: Path) -> None:
    places = mapped(adaptable_weights(checkpoint.load_unet(CPU, torch.float32)))
    places.save(tmp_path / "unet.weights.json")
    assert WeightMap.load(tmp_path / "unet.weights.json", "unet") == places
