"""What LoRAs make of an engine's initialisers, against the patcher of PyTorch's weights; no engine is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import checkpoints
import lora_files
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules, adaptable_weights
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMismatchError
from swiftdiffusion.python_backends.tensorrt.refit import EnginePatcher, RefitError
from swiftdiffusion.python_backends.tensorrt.weights import EngineWeights, MappedWeight, WeightMap, read_weight_map

CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


class Initialisers:
    """An engine's weights without the engine: it reads what was offered when it is refitted, as TensorRT does.

    `together` are initialisers that it takes only with each other.
    """

    def __init__(self, together: tuple[str, ...] = ()) -> None:
        self.values: dict[str, torch.Tensor] = {}
        self.last: set[str] = set()
        self.refits = 0
        self._offered: dict[str, torch.Tensor] = {}
        self._together = together
        self.fail = False

    def offer(self, tensors: Mapping[str, torch.Tensor]) -> list[str]:
        for name, tensor in tensors.items():
            assert tensor.is_contiguous()
            known = self._offered.setdefault(name, tensor)
            assert known.data_ptr() == tensor.data_ptr(), "memory that was offered has to stay"
        self.last = set(tensors)
        needed = self._together if self._offered.keys() & set(self._together) else ()
        return [name for name in needed if name not in self._offered]

    def refit(self) -> None:
        if self.fail:
            raise RefitError("no")
        self.values |= {name: tensor.clone() for name, tensor in self._offered.items()}
        self.refits += 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl"), depth=2))


@pytest.fixture(scope="module")
def loras(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[CanonicalLora]:
    """Over everything; over attention; LoHa over convolutions; DoRA over every third module."""
    directory = tmp_path_factory.mktemp("loras")
    shapes = dict(BaseModules.of(checkpoint).shapes["unet"])
    weights = {("unet", name): weight.detach() for name, weight in adaptable_weights(load(checkpoint)).items()}
    some = {name: shape for number, (name, shape) in enumerate(shapes.items()) if number % 3 == 0}
    made = [
        lora_files.kohya({"unet": shapes}),
        lora_files.kohya({"unet": {name: shape for name, shape in shapes.items() if "attn" in name}}, seed=2),
        lora_files.loha({name: shape for name, shape in shapes.items() if "conv" in name}),
        lora_files.dora(lora_files.kohya({"unet": some}, seed=4), weights, "output"),
    ]
    canonicaliser = Canonicaliser(checkpoint)
    return [canonicaliser.read(lora.save(directory / f"{n}.safetensors")) for n, lora in enumerate(made)]


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return checkpoint.load_unet(CPU, dtype)


def maps(unet: torch.nn.Module) -> tuple[WeightMap, WeightMap]:
    """Linear layers transposed, convolutions as they are; the two halves as the UNet is cut."""
    halves: tuple[WeightMap, WeightMap] = {}, {}
    for name, weight in adaptable_weights(unet).items():
        transposed = weight.ndim == 2
        place = MappedWeight(
            initializer=f"{name}.weight{'.T' * transposed}", transposed=transposed, shape=tuple(weight.shape)
        )
        halves[name.startswith(("up_blocks", "conv_out"))][name] = place
    return halves


class Engines:
    """Both halves without engines, and their patcher."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, together: tuple[str, ...] = ()):
        self.unet = load(checkpoint)
        if dtype != torch.float32:
            self.unet = self.unet.to(dtype)
        self.maps = maps(self.unet)
        self.halves = Initialisers(together), Initialisers()
        pairs = zip(self.halves, self.maps, strict=True)
        self.patcher = EnginePatcher({"unet": self.unet}, [("unet", half, held) for half, held in pairs], dtype)

    @property
    def values(self) -> dict[str, torch.Tensor]:
        return self.halves[0].values | self.halves[1].values

    @property
    def last(self) -> set[str]:
        return self.halves[0].last | self.halves[1].last

    def wanted(self, unet: torch.nn.Module) -> dict[str, torch.Tensor]:
        """What the initialisers would be, had the patched network been exported."""
        places = self.maps[0] | self.maps[1]
        weights = adaptable_weights(unet)
        return {
            place.initializer: (weights[name].T if place.transposed else weights[name]).detach().clone()
            for name, place in places.items()
        }


def patched(checkpoint: Checkpoint, dtype: torch.dtype, chosen: list[tuple[CanonicalLora, float]]) -> torch.nn.Module:
    unet = load(checkpoint).to(dtype)
    Patcher({"unet": unet}).apply(chosen)
    return unet


@DTYPES
def test_initialisers_are_what_the_patcher_makes_of_weights(
    checkpoint: Checkpoint, loras: list[CanonicalLora], dtype: torch.dtype
) -> None:
    engines = Engines(checkpoint, dtype)
    for chosen in ([(loras[0], 1.0)], [(loras[1], 0.5), (loras[3], -0.75)], [(loras[2], 1.0)], []):
        count = engines.patcher.apply(chosen)
        unet = patched(checkpoint, dtype, chosen)
        wanted = engines.wanted(unet)
        for name, value in engines.values.items():
            assert torch.equal(value, wanted[name]), name
        adapted = {module for lora, _ in chosen for group in lora.groups for module in group.modules}
        assert count == len(adapted)


@DTYPES
def test_there_and_back_gives_the_same_bits(
    checkpoint: Checkpoint, loras: list[CanonicalLora], dtype: torch.dtype
) -> None:
    engines = Engines(checkpoint, dtype)
    engines.patcher.apply([(loras[1], 0.8)])
    first = engines.values
    engines.patcher.apply([(loras[2], 1.0), (loras[3], 0.5)])
    engines.patcher.apply([(loras[1], 0.8)])
    again = engines.values
    assert all(torch.equal(again[name], value) for name, value in first.items())
    engines.patcher.apply([])
    wanted = engines.wanted(load(checkpoint).to(dtype))
    assert all(torch.equal(value, wanted[name]) for name, value in engines.values.items())


def test_everything_of_either_set_is_refitted_and_nothing_else(
    checkpoint: Checkpoint, loras: list[CanonicalLora]
) -> None:
    engines = Engines(checkpoint)
    places = engines.maps[0] | engines.maps[1]

    def names(*chosen: CanonicalLora) -> set[str]:
        modules = {module for lora in chosen for group in lora.groups for module in group.modules}
        return {places[module].initializer for module in modules}

    engines.patcher.apply([(loras[1], 1.0)])
    assert engines.last == names(loras[1])
    engines.patcher.apply([(loras[2], 1.0)])
    assert engines.last == names(loras[1], loras[2])
    engines.patcher.apply([(loras[2], 0.5)])
    assert engines.last == names(loras[2])
    engines.patcher.apply([])
    assert engines.last == names(loras[2])
    refits = engines.halves[0].refits
    engines.patcher.apply([])
    assert engines.halves[0].refits == refits, "nothing to do"


def test_loras_are_prepared_as_for_the_patcher(checkpoint: Checkpoint, loras: list[CanonicalLora]) -> None:
    engines = Engines(checkpoint)
    assert engines.patcher.uploads_to() is None, "on the CPU"
    assert engines.patcher.prepare(loras[0]) is loras[0]


def test_channels_last_weights_are_given_in_the_order_of_the_onnx_file(checkpoint: Checkpoint) -> None:
    unet = load(checkpoint).to(memory_format=torch.channels_last)
    Patcher({"unet": unet})
    weights = EngineWeights(maps(unet)[0], adaptable_weights(unet), torch.float32)
    (conv,) = weights.update(["conv_in"]).values()
    assert conv.is_contiguous()
    assert torch.equal(conv, load(checkpoint).conv_in.weight)


def test_weights_that_the_engine_wants_together(checkpoint: Checkpoint, loras: list[CanonicalLora]) -> None:
    prefix = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    fused = tuple(f"{prefix}.{name}.weight.T" for name in ("to_q", "to_k", "to_v"))
    engines = Engines(checkpoint, together=(*fused, "conv_in.weight"))
    engines.patcher.apply([(loras[1], 1.0)])
    unpatched = load(checkpoint).conv_in.weight
    assert torch.equal(engines.values["conv_in.weight"], unpatched), "not adapted, and given as it is"
    stranger = Engines(checkpoint, together=(fused[0], "bias of something"))
    with pytest.raises(RefitError, match="bias of something"):
        stranger.patcher.apply([(loras[1], 1.0)])


def test_a_failed_refit_is_repaired_by_the_next_set(checkpoint: Checkpoint, loras: list[CanonicalLora]) -> None:
    engines = Engines(checkpoint)
    engines.halves[1].fail = True
    with pytest.raises(RefitError):
        engines.patcher.apply([(loras[1], 1.0)])
    engines.halves[1].fail = False
    engines.patcher.apply([])
    wanted = engines.wanted(load(checkpoint))
    assert engines.values
    assert all(torch.equal(value, wanted[name]) for name, value in engines.values.items())


def test_an_untransposed_weight_is_not_copied(checkpoint: Checkpoint) -> None:
    unet = load(checkpoint)
    Patcher({"unet": unet})
    weights = EngineWeights(maps(unet)[0], adaptable_weights(unet), torch.float32)
    (conv,) = weights.update(["conv_in"]).values()
    assert conv.data_ptr() == unet.conv_in.weight.data_ptr()
    assert weights.update(["conv_out"]) == {}, "the other half's"


def test_maps_that_do_not_fit_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    unet = load(checkpoint)
    encoder, decoder = maps(unet)
    with pytest.raises(EngineMismatchError, match=r"no engine holds \d+ of the weights of unet .* conv_out"):
        EnginePatcher({"unet": unet}, [("unet", Initialisers(), encoder)], torch.float32)
    wrong = encoder | {"conv_in": encoder["conv_in"].model_copy(update={"shape": (1, 2)})}
    with pytest.raises(EngineMismatchError, match=r"conv_in as \[1, 2\]; the checkpoint's is \[16, 4, 3, 3\]"):
        EnginePatcher(
            {"unet": unet}, [("unet", Initialisers(), wrong), ("unet", Initialisers(), decoder)], torch.float32
        )
    (tmp_path / "unet_encoder.weights.json").write_text(json.dumps({"conv_in": {"initializer": "x"}}))
    with pytest.raises(EngineMismatchError, match=r"conv_in\.transposed: Field required; export the ONNX files again"):
        read_weight_map(tmp_path, "unet_encoder")
    assert read_weight_map(tmp_path, "vae_decoder") == {}
    with pytest.raises(EngineMismatchError, match=r"text_encoder\.weights\.json is missing; export"):
        read_weight_map(tmp_path, "text_encoder")


def test_norms_and_biases_are_refused_by_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    engines = Engines(checkpoint)
    before = {name: value.clone() for name, value in engines.values.items()}
    made = lora_files.differences({}, {"unet": {"conv_norm_out": (16,)}})
    lora = Canonicaliser(checkpoint).read(made.save(tmp_path / "lora.safetensors"))
    with pytest.raises(InvalidRequestError, match=r"unet\.conv_norm_out; allowed with the runtime tensorrt"):
        engines.patcher.apply([(lora, 1.0)])
    assert all(torch.equal(value, before[name]) for name, value in engines.values.items())
