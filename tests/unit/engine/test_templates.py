"""What is known of pictures that requests edit: entries that exact steps leave, and runs that go by them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import checkpoints
from edits import LocalEdits, box, picture
from swiftdiffusion.python_backends.engine.guidance import CONDITIONAL
from swiftdiffusion.python_backends.engine.run import Denoising
from swiftdiffusion.python_backends.engine.template_store import Company, Place, TemplateStore
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.token_codes import Codes
from swiftdiffusion.python_backends.request.completed import ControlNetUse
from swiftdiffusion.python_backends.shared_memory.host_cache import HostCache

SIZE = (64, 96)
STEPS = 20
SMALL, WITHIN, BESIDE = box(*SIZE, 9, 5, 33, 31), box(*SIZE, 9, 5, 25, 23), box(*SIZE, 9, 41, 33, 67)
FIELDS: dict[str, Any] = {
    "PROMPT": "a cat",
    "NEGATIVE_PROMPT": "blurry",
    "SEED": 3,
    "STEPS": STEPS,
    "STRENGTH": 1.0,
    "SCHEDULER": "euler",
    "INIT_IMAGE": picture(*SIZE),
    "MASK_IMAGE": SMALL,
}
Edited = tuple[torch.Tensor, dict[str, Any] | None]


class Shard:
    """A checkpoint's parts, and entries of their own for each test."""

    def __init__(self, edits: LocalEdits, tiers: tuple[HostCache, ...]) -> None:
        self.edits, self.store = edits, TemplateStore(tiers)
        self.edits.templates = self.store
        self.edits.make_token_runs()

    def begin(self, **fields: Any) -> Denoising:
        return self.edits.run(self.edits.parse(**FIELDS | fields))

    def finish(self, run: Denoising) -> Edited:
        """Latents, and INFO's `editing`."""
        while not run.done:
            self.edits.step(run)
        report = None if run.token_run is None else run.token_run.report(run.steps)
        run.close()
        assert self.edits.token_runs.writer is not None
        self.edits.token_runs.writer.flush()
        return run.latents, report

    def edit(self, **fields: Any) -> Edited:
        return self.finish(self.begin(**fields))

    def entries(self) -> list[Path]:
        return sorted(path for tier in self.store._tiers for path in tier.directory.glob("*.safetensors"))


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> LocalEdits:
    return LocalEdits(Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl"))))


@pytest.fixture
def shards(edits: LocalEdits, tmp_path: Path) -> Iterator[Callable[..., Shard]]:
    """Makes shards with room for so many bytes, in memory and, if wanted, on disk."""
    made: list[Shard] = []

    def make(*sizes: int) -> Shard:
        tiers = tuple(HostCache(tmp_path / f"{number}", size, wait_s=0.0) for number, size in enumerate(sizes))
        made.append(Shard(edits, tiers))
        return made[-1]

    yield make
    for shard in made:
        runs, room = shard.edits.token_runs, shard.edits.token_bytes
        assert runs.memory.free == room // 2 and runs.writer is not None and runs.writer.has_room(room // 4)


@pytest.fixture
def shard(shards: Callable[..., Shard]) -> Shard:
    return shards(2**28)


@pytest.fixture(scope="module")
def exact(edits: LocalEdits) -> torch.Tensor:
    """Latents of `FIELDS`, all computed."""
    edits.templates = None
    edits.make_token_runs()
    return edits.latents(edits.parse(**FIELDS))


def test_from_the_second_sight_on_entries_are_left_and_then_gone_by(shard: Shard) -> None:
    assert (shard.edit(MASK_AWARE="fast")[1] or {})["source"] == "own" and shard.entries() == []
    assert (shard.edit(MASK_AWARE="fast")[1] or {})["source"] == "own"
    assert len(shard.entries()) == 2 * len([0, 1, 5, 9, 13, 17])
    _, third = shard.edit(MASK_AWARE="fast")
    assert third is not None and third["source"] == "template" and third["same_prompt"]
    # An entry serves the steps beside its own: those of 3, 7, 11, 15 lacked one, and leave it now.
    assert (third["exact_steps"], third["misses"]) == ([3, 7, 10, 11, 15, 19], 4)
    _, fourth = shard.edit(MASK_AWARE="fast")
    assert fourth is not None and (fourth["exact_steps"], fourth["misses"]) == ([10, 19], 0)
    assert fourth["cache_error"] < 0.1


def test_exact_requests_leave_entries_of_pictures_that_are_known(shard: Shard, exact: torch.Tensor) -> None:
    latents, report = shard.edit()
    assert torch.equal(latents, exact) and report is None and shard.entries() == []
    shard.edit(MASK_AWARE="fast")
    latents, report = shard.edit()
    assert torch.equal(latents, exact) and report is None
    assert len(shard.entries()) == 2 * STEPS
    latents, report = shard.edit()
    assert torch.equal(latents, exact) and len(shard.entries()) == 2 * STEPS


def test_with_entries_of_the_same_run_the_picture_is_the_exact_one(shard: Shard, exact: torch.Tensor) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    latents, report = shard.edit(MASK_AWARE='{"source": "template", "exact_steps": []}')
    assert report is not None and (report["source"], report["exact_steps"]) == ("template", [])
    assert (latents - exact).abs().max() < 0.02 * exact.abs().max()  # a byte a value
    _, balanced = shard.edit(MASK_AWARE="balanced", SEED=4)
    assert balanced is not None and balanced["exact_steps"] == [5, 10, 15, 19]
    _, report = shard.edit(MASK_AWARE="fast", STEPS=8)
    assert report is not None and (report["source"], report["exact_steps"], report["misses"]) == ("template", [4, 7], 0)


def test_entries_of_another_prompt_serve_but_not_those_of_none(shard: Shard) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    _, other = shard.edit(MASK_AWARE="fast", PROMPT="a dog")
    assert other is not None and (other["source"], other["same_prompt"]) == ("template", False)
    before = len(shard.entries())
    shard.edit(PROMPT=" ")
    assert len(shard.entries()) == before + STEPS  # of the conditional half
    _, blank = shard.edit(MASK_AWARE="fast", PROMPT=" ")
    assert blank is not None and blank["source"] == "template"
    assert shard.begin(MASK_AWARE="fast", PROMPT="a bird", NEGATIVE_PROMPT="dull").token_run is not None


@pytest.mark.parametrize(
    "other",
    [
        {"INIT_IMAGE": picture(*SIZE, 1)},
        {"MASK_IMAGE": BESIDE},
        {"MASK_IMAGE": WITHIN},
        {"PROMPT": "", "NEGATIVE_PROMPT": "blurry"},
    ],
    ids=["another picture", "another mask", "a smaller mask", "no prompt"],
)
def test_what_entries_do_not_say_is_a_miss_and_exact(shard: Shard, other: dict[str, Any]) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    asked = {"MASK_AWARE": '{"source": "template", "exact_steps": []}'} | other
    latents, report = shard.edit(**asked)
    assert report is not None
    if "PROMPT" in other:  # the unconditional half is known
        assert report["misses"] == STEPS and report["exact_steps"] == list(range(STEPS))
    else:
        assert (report["mode"], report["why"]) == ("exact", "nothing is known of the picture")
        assert torch.equal(latents, shard.edit(**asked | {"MASK_AWARE": "exact"})[0])


def test_a_larger_mask_goes_by_entries_of_one_within(shard: Shard) -> None:
    shard.edit(MASK_AWARE="fast", MASK_IMAGE=WITHIN)
    shard.edit(MASK_IMAGE=WITHIN)
    _, report = shard.edit(MASK_AWARE="fast")
    assert report is not None and report["source"] == "template"


def test_a_lora_that_goes_on_in_mid_run_misses_and_hits_the_next_time(shard: Shard) -> None:
    def edited() -> dict[str, Any]:
        run = shard.begin(MASK_AWARE="fast")
        while run.step < 7:
            shard.edits.step(run)
        run.loras.current = (("another", 1.0),)
        report = shard.finish(run)[1]
        assert report is not None
        return report

    shard.edit(MASK_AWARE="fast")
    shard.edit()
    first = edited()
    assert (first["source"], first["exact_steps"]) == ("template", [7, 8, 9, 13, 17])
    second = edited()
    assert second["source"] == "template" and second["exact_steps"] == [10, 11, 15, 19]
    assert edited()["exact_steps"] == [10, 19]


def test_entries_that_have_gone_are_missed(shard: Shard, exact: torch.Tensor) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    run = shard.begin(MASK_AWARE='{"source": "template", "exact_steps": []}')
    shard.edits.step(run)
    for entry in shard.entries():
        entry.unlink()
    _, report = shard.finish(run)
    assert report is not None and report["exact_steps"] == list(range(2, STEPS))  # the second one's was on its way
    assert len(shard.entries()) == 2 * (STEPS - 2)


def test_files_of_others_are_no_entries(shard: Shard) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    for entry in shard.entries():
        entry.chmod(0o600)
        entry.write_bytes(b"not tensors")
    _, report = shard.edit(MASK_AWARE="fast")
    assert report is not None and report["source"] == "own"
    _, report = shard.edit(MASK_AWARE="fast")
    assert report is not None and report["source"] == "template", "what was none has gone, and entries came instead"


def test_files_with_other_names_or_without_a_mask_are_no_entries(shard: Shard) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    for entry in shard.entries():
        entry.rename(entry.with_name(f"{entry.stem} (copy).safetensors"))
        save_file({"0.values": torch.zeros(1, 1)}, entry, {"name": entry.stem})
    _, report = shard.edit(MASK_AWARE="fast")
    assert report is not None and report["source"] == "own"


@pytest.mark.parametrize(
    "asked", ['{"source": "template", "exact_steps": []}', '{"source": "template", "exact_steps": [0, 10]}']
)
def test_an_entry_that_cannot_be_read_is_a_miss_and_the_step_is_taken_again(
    shards: Callable[..., Shard], tmp_path: Path, exact: torch.Tensor, asked: str
) -> None:
    shard = shards(2**28, 2**28)
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    for entry in (tmp_path / "0").glob("*.safetensors"):
        entry.unlink()

    def broken(_codes: Codes) -> Codes:
        raise OSError("the disk is broken")

    shard.edits.token_runs.loads._read, read = broken, shard.edits.token_runs.loads._read
    lost = shard.edits.lost
    latents, report = shard.edit(MASK_AWARE=asked)
    assert shard.edits.lost - lost <= STEPS and torch.equal(latents, exact)
    assert report is not None and report["mode"] == "exact"
    shard.edits.token_runs.loads._read = read
    lost = shard.edits.lost
    _, report = shard.edit(MASK_AWARE=asked)
    assert shard.edits.lost == lost, "what was lost was left anew"
    assert report is not None and report["source"] == "template"


@pytest.mark.parametrize(("share", "left"), [(1.5, 2 * STEPS), (0.75, STEPS), (0.3, 0)])
def test_as_many_entries_are_left_as_there_is_room_for(shards: Callable[..., Shard], share: float, left: int) -> None:
    all_of_it = shards(2**28)
    all_of_it.edit(MASK_AWARE="fast")
    all_of_it.edit()
    sizes = [entry.stat().st_size for entry in all_of_it.entries()]
    shard = shards(int(share * sum(sizes)))
    for entry in shard.entries():
        entry.unlink()
    shard.edit(MASK_AWARE="fast")
    for _ in range(3):
        shard.edit()
        assert len(shard.entries()) == left


def test_masks_that_are_remembered_map_nothing(shard: Shard) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    _, report = shard.edit(MASK_AWARE="fast")
    assert report is not None and report["source"] == "template"
    for entry in shard.entries():
        entry.unlink()
    gc.collect()
    directory = shard.store._tiers[0].directory
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(directory) in line]


def test_memory_is_bounded_over_a_hundred_pictures(shards: Callable[..., Shard]) -> None:
    bound = 2**21
    shard = shards(bound)
    for seed in range(100):
        fields = {"INIT_IMAGE": picture(*SIZE, seed), "STEPS": 2}
        shard.store.see(shard.edits.parse(**FIELDS | fields).edit.picture)  # type: ignore[union-attr]
        shard.edit(**fields)
        assert shard.store._tiers[0].bytes_used() <= bound
    assert len(shard.entries()) > 4
    _, report = shard.edit(**fields, MASK_AWARE='{"source": "template", "exact_steps": []}')
    assert report is not None and report["exact_steps"] == []


def test_few_steps_are_exact_where_nothing_is_known_and_shared_with_other_shards(shard: Shard) -> None:
    run = shard.begin(MASK_AWARE="fast", STEPS=8)
    assert run.is_mask_aware
    shard.edits.step(run)
    assert not run.is_mask_aware
    report = shard.finish(run)[1]
    assert report is not None and report["why"] == "8 steps are too few; 16 are enough"


def test_of_pictures_that_were_seen_the_last_are_known(tmp_path: Path) -> None:
    store = TemplateStore((HostCache(tmp_path / "memory", 2**20, wait_s=0.0),), seen_bytes=3 * 4096)
    assert [store.see(each) for each in "abcabdab"] == [False] * 3 + [True] * 2 + [False] + [True] * 2
    assert store.was_seen("d") and not store.was_seen("c")


def test_what_there_is_no_room_for_is_dropped(shards: Callable[..., Shard], exact: torch.Tensor) -> None:
    shard = shards(2000)
    shard.edit(MASK_AWARE="fast")
    latents, _ = shard.edit()
    assert torch.equal(latents, exact) and shard.entries() == []


def test_what_controlnets_gave_is_not_for_other_servers(shards: Callable[..., Shard], tmp_path: Path) -> None:
    shard = shards(2**28, 2**28)
    shard.edit(MASK_AWARE="fast")
    run = shard.begin()
    use = ControlNetUse("edges", ("0" * 64,), 1.0, 0.0, 1.0, guess_mode=False)
    run.controls = lambda half: (use,)[: half == CONDITIONAL]  # type: ignore[method-assign]
    shard.finish(run)
    near, far = (len(list((tmp_path / tier).glob("*.safetensors"))) for tier in "01")
    assert (near, far) == (2 * STEPS, STEPS)


def test_what_is_there_is_not_written_again(shard: Shard) -> None:
    name, values, mask = f"{'0' * 32}-{'1' * 16}-{'2' * 16}-500", [torch.ones(4, 4)], torch.zeros(2, 2)
    assert shard.store.write(name, values, mask)
    assert shard.store.write(name, values, mask) is None


def test_what_is_on_disk_outlives_memory(shards: Callable[..., Shard], tmp_path: Path) -> None:
    shard = shards(2**28, 2**28)
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    assert len(shard.entries()) == 4 * STEPS
    for entry in (tmp_path / "0").glob("*.safetensors"):
        entry.unlink()
    _, report = shard.edit(MASK_AWARE="fast")
    assert report is not None and report["exact_steps"] == [10, 19]


def test_another_network_has_other_entries(shard: Shard) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    weight = next(shard.edits.unet._modules[0].parameters())  # type: ignore[attr-defined]
    assert weight is not None
    shard.edits.make_token_runs(digest="another")
    _, report = shard.edit(MASK_AWARE="fast")
    assert report is not None and report["source"] == "own"


def test_entries_with_controlnets_are_of_one_server_others_of_the_network() -> None:
    use = ControlNetUse("edges", ("0" * 64,), 1.0, 0.0, 1.0, guess_mode=False)
    alone, controlled = (Company((), controls, "0" * 16) for controls in ((), (use,)))
    here, there = (Place("network", "picture", "conditional", server) for server in ("here", "there"))
    assert here.slot(alone) == there.slot(alone) != here.slot(controlled) != there.slot(controlled)
    other = Company((), (replace(use, scale=0.5),), "0" * 16)
    assert here.slot(controlled) != here.slot(other)
    assert here.slot(Company((("a", 1.0),), (), "0" * 16)) != here.slot(Company((("a", 0.5),), (), "0" * 16))
