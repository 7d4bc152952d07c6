"""Sets patched in by one call of the kernel's op, over channels-last weights, against the patcher of the CPU."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import checkpoints
import lora_files
from swiftdiffusion.python_backends.common.errors import LoraUnavailableError
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.lora_set import NO_LORAS
from swiftdiffusion.python_backends.lora.files.modules import BaseModules, adaptable_weights
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.lora.patching.resident import DEVICE_BYTES, ResidentLoras, device_bytes
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

CPU = torch.device("cpu")
KINDS = ("everything", "half", "attention", "loha", "lokr", "dora")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl"), depth=2))


@pytest.fixture(scope="module")
def unet(checkpoint: Checkpoint) -> torch.nn.Module:
    return checkpoint.load_unet(CPU, torch.float32)


@pytest.fixture(scope="module")
def files(checkpoint: Checkpoint, unet: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of canonical LoRAs, by kind."""
    directory = tmp_path_factory.mktemp("loras")
    shapes = dict(BaseModules.of(checkpoint).shapes["unet"])
    convolutions = {name: shape for name, shape in shapes.items() if len(shape) == 4}
    attention = {name: shape for name, shape in shapes.items() if "attn" in name}
    weights = {("unet", name): weight.detach() for name, weight in adaptable_weights(unet).items()}
    made = {
        "everything": lora_files.kohya({"unet": shapes}, lambda n: n % 3 + 1),
        "half": lora_files.kohya({"unet": convolutions}, seed=3, dtype=torch.float16),
        "attention": lora_files.kohya({"unet": attention}, seed=1),
        "loha": lora_files.loha(convolutions),
        "lokr": lora_files.lokr(convolutions, left=True, right=False),
        "dora": lora_files.dora(lora_files.kohya({"unet": convolutions}, seed=4), weights, "output"),
    }
    canonicalise = Canonicaliser(checkpoint)
    for number, (kind, file) in enumerate(made.items()):
        canonicalise(file.save(directory / f"{kind}.file.safetensors"), directory / f"{number:016x}.safetensors")
    return directory


def key(kind: str) -> str:
    return f"{KINDS.index(kind):016x}"


def lora(files: Path, kind: str) -> CanonicalLora:
    return CanonicalLora.open(files / f"{key(kind)}.safetensors")


@pytest.mark.parametrize(
    "kinds",
    [
        ["everything"],
        ["half", "attention"],
        ["everything", "everything"],
        ["loha", "half"],
        ["lokr"],
        ["dora", "attention"],
    ],
    ids="+".join,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_equals_the_patcher_of_the_cpu(
    unet: torch.nn.Module, files: Path, kinds: list[str], dtype: torch.dtype
) -> None:
    ours = copy.deepcopy(unet).to(dtype).to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(unet).to(dtype)
    original = {name: weight.clone() for name, weight in adaptable_weights(ours).items()}
    patcher = Patcher({"unet": ours}, one_launch=True)
    chosen = [(lora(files, kind), 0.7) for kind in kinds]
    patcher.apply([(lora(files, "everything"), 1.0)])
    count = patcher.apply([(patcher.prepare(one), scale) for one, scale in chosen])
    assert count == Patcher({"unet": theirs}).apply(chosen)
    for name, weight in adaptable_weights(ours).items():
        wanted = adaptable_weights(theirs)[name]
        torch.testing.assert_close(weight, wanted, rtol=torch.finfo(dtype).eps * 4, atol=1e-6, msg=name)
        if weight.ndim == 4:
            assert weight.is_contiguous(memory_format=torch.channels_last), name
    patcher.apply([])
    assert all(torch.equal(weight, original[name]) for name, weight in adaptable_weights(ours).items())


def test_a_lora_that_is_on_the_device_needs_its_file_no_more(unet: torch.nn.Module, files: Path) -> None:
    ours = copy.deepcopy(unet)
    resident = ResidentLoras(Patcher({"unet": ours}, one_launch=True), files)
    wanted = ((key("everything"), 0.5), (key("loha"), 1.0))
    resident.ensure(wanted)
    first = {name: weight.clone() for name, weight in adaptable_weights(ours).items()}
    resident.ensure(NO_LORAS)
    moved = [(files / f"{name}.safetensors") for name, _ in wanted]
    for file in moved:
        file.rename(file.with_suffix(".gone"))
    try:
        resident.ensure(wanted)
        assert all(torch.equal(weight, first[name]) for name, weight in adaptable_weights(ours).items())
    finally:
        for file in moved:
            file.with_suffix(".gone").rename(file)


def test_the_loras_used_last_stay_on_the_device_as_far_as_there_is_room(
    unet: torch.nn.Module, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patcher = Patcher({"unet": copy.deepcopy(unet)}, one_launch=True)
    opened: list[str] = []

    def opening(path: Path) -> CanonicalLora:
        opened.append(path.stem)
        return canonical(path)

    canonical = CanonicalLora.open
    size = {kind: patcher.prepare(lora(files, kind)).nbytes for kind in ("everything", "attention")}  # type: ignore[attr-defined]
    monkeypatch.setattr(CanonicalLora, "open", opening)
    both = [key("everything"), key("attention")]
    for room, read_again in ((sum(size.values()), []), (size["everything"], both), (size["attention"], both[:1])):
        resident = ResidentLoras(patcher, files, most_bytes=room)
        for each in both:
            resident.ensure(((each, 1.0),))
        opened.clear()
        for each in both:
            resident.ensure(((each, 0.5),))
        assert opened == read_again


def test_what_stays_goes_by_the_gpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda:1")
    for total, free, most in ((80, 60, 8.0), (80, 10, 5.0), (24, 0, 0.0)):
        monkeypatch.setattr(
            torch.cuda, "mem_get_info", lambda device, found=(free, total): [each << 30 for each in found]
        )
        assert device_bytes(gpu) / 2**30 == pytest.approx(most)
    assert device_bytes(CPU) == DEVICE_BYTES


def test_warming_up_changes_nothing(unet: torch.nn.Module) -> None:
    ours = copy.deepcopy(unet)
    Patcher({"unet": ours}, one_launch=True).warm_up()
    assert all(torch.equal(weight, adaptable_weights(unet)[name]) for name, weight in adaptable_weights(ours).items())


def test_uploads_ahead(unet: torch.nn.Module, files: Path) -> None:
    ours, theirs = copy.deepcopy(unet), copy.deepcopy(unet)
    resident = ResidentLoras(Patcher({"unet": ours}, one_launch=True), files)
    wanted = ((key("everything"), 0.5), (key("half"), 1.0))
    missing = "f" * 16
    resident.upload([name for name, _ in wanted] + [missing])
    resident.upload([key("everything")])
    resident.ensure(wanted)
    ResidentLoras(Patcher({"unet": theirs}), files).ensure(wanted)
    for name, weight in adaptable_weights(ours).items():
        torch.testing.assert_close(weight, adaptable_weights(theirs)[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(LoraUnavailableError, match=missing):
        resident.ensure(((missing, 1.0),))
    resident.ensure(NO_LORAS)
    assert all(torch.equal(weight, adaptable_weights(unet)[name]) for name, weight in adaptable_weights(ours).items())
