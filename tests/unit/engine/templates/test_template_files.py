"""Entries as files: what is none, what cannot be read, how many there are, and for whom."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edits import picture
from swiftdiffusion.python_backends.engine.guidance import CONDITIONAL
from swiftdiffusion.python_backends.engine.template_store import TemplateStore
from swiftdiffusion.python_backends.networks.token_codes import Codes
from swiftdiffusion.python_backends.request.completed import ControlNetUse
from swiftdiffusion.python_backends.shared_memory.host_cache import HostCache
from template_shards import FIELDS, SIZE, STEPS, TemplateShard


def test_files_of_others_are_no_entries(shard: TemplateShard) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    for entry in shard.entries():
        entry.chmod(0o600)
        entry.write_bytes(b"not tensors")
    _, report = shard.edit(MASK_AWARE="fast")
    assert report is not None and report["source"] == "own"
    _, report = shard.edit(MASK_AWARE="fast")
    assert report is not None and report["source"] == "template", "what was none has gone, and entries came instead"


def test_files_with_other_names_or_without_a_mask_are_no_entries(shard: TemplateShard) -> None:
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
    shards: Callable[..., TemplateShard], tmp_path: Path, exact: torch.Tensor, asked: str
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
def test_as_many_entries_are_left_as_there_is_room_for(
    shards: Callable[..., TemplateShard], share: float, left: int
) -> None:
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


def test_masks_that_are_remembered_map_nothing(shard: TemplateShard) -> None:
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    _, report = shard.edit(MASK_AWARE="fast")
    assert report is not None and report["source"] == "template"
    for entry in shard.entries():
        entry.unlink()
    gc.collect()
    directory = shard.store._tiers[0].directory
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(directory) in line]


def test_memory_is_bounded_over_a_hundred_pictures(shards: Callable[..., TemplateShard]) -> None:
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


def test_of_pictures_that_were_seen_the_last_are_known(tmp_path: Path) -> None:
    store = TemplateStore((HostCache(tmp_path / "memory", 2**20, wait_s=0.0),), seen_bytes=3 * 4096)
    assert [store.see(each) for each in "abcabdab"] == [False] * 3 + [True] * 2 + [False] + [True] * 2
    assert store.was_seen("d") and not store.was_seen("c")


def test_what_there_is_no_room_for_is_dropped(shards: Callable[..., TemplateShard], exact: torch.Tensor) -> None:
    shard = shards(2000)
    shard.edit(MASK_AWARE="fast")
    latents, _ = shard.edit()
    assert torch.equal(latents, exact) and shard.entries() == []


def test_what_controlnets_gave_is_not_for_other_servers(shards: Callable[..., TemplateShard], tmp_path: Path) -> None:
    shard = shards(2**28, 2**28)
    shard.edit(MASK_AWARE="fast")
    run = shard.begin()
    use = ControlNetUse("edges", ("0" * 64,), 1.0, 0.0, 1.0, guess_mode=False)
    run.controls = lambda half: (use,)[: half == CONDITIONAL]  # type: ignore[method-assign]
    shard.finish(run)
    near, far = (len(list((tmp_path / tier).glob("*.safetensors"))) for tier in "01")
    assert (near, far) == (2 * STEPS, STEPS)


def test_what_is_there_is_not_written_again(shard: TemplateShard) -> None:
    name, values, mask = f"{'0' * 32}-{'1' * 16}-{'2' * 16}-500", [torch.ones(4, 4)], torch.zeros(2, 2)
    assert shard.store.write(name, values, mask)
    assert shard.store.write(name, values, mask) is None


def test_what_is_on_disk_outlives_memory(shards: Callable[..., TemplateShard], tmp_path: Path) -> None:
    shard = shards(2**28, 2**28)
    shard.edit(MASK_AWARE="fast")
    shard.edit()
    assert len(shard.entries()) == 4 * STEPS
    for entry in (tmp_path / "0").glob("*.safetensors"):
        entry.unlink()
    _, report = shard.edit(MASK_AWARE="fast")
    assert report is not None and report["exact_steps"] == [10, 19]
