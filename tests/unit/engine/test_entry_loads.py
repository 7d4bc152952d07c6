"""Entries on their way: mapped where they lie in memory, read a step ahead where they do not."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from pathlib import Path

import pytest
import torch

from swiftdiffusion.python_backends.common.errors import EntryLostError
from swiftdiffusion.python_backends.engine import entry_loads
from swiftdiffusion.python_backends.engine.entry_loads import EntryLoads
from swiftdiffusion.python_backends.engine.template_lines import TemplateLine
from swiftdiffusion.python_backends.engine.template_store import TemplateStore, Track
from swiftdiffusion.python_backends.networks.token_codes import Codes
from swiftdiffusion.python_backends.shared_memory.host_cache import HostCache

CPU, MASK = torch.device("cpu"), torch.zeros(4, 4)
SHAPES = [(16, 8), (16, 8), (4, 32)]
SLOT = "0" * 32
PAUSE_S = 0.02


@pytest.fixture
def store(tmp_path: Path) -> TemplateStore:
    """Memory and disk."""
    return TemplateStore(tuple(HostCache(tmp_path / name, 2**20, wait_s=0.0) for name in ("memory", "disk")))


def written(store: TemplateStore, timestep: int, seed: int = 0) -> tuple[str, list[torch.Tensor]]:
    """The name of an entry in both tiers, and what its blocks gave."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator) for shape in SHAPES]
    name = f"{SLOT}-{1:016x}-{2:016x}-{100 * timestep}"
    assert store.write(name, values, MASK) > 0
    return name, values


def of_disk(store: TemplateStore, name: str) -> Path:
    """The entry where it has to be read."""
    memory, disk = store._tiers
    memory_file = memory.find(name)
    assert memory_file is not None
    memory_file.unlink()
    found = disk.find(name)
    assert found is not None
    return found


def slowly(codes: Codes) -> Codes:
    """As a slow disk reads."""
    time.sleep(PAUSE_S)
    return codes


@pytest.fixture
def somebody_waits(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set from when a block is waited for."""
    event = threading.Event()

    def told(futures: list[Future[Codes]]) -> None:
        event.set()
        wait_for_futures(futures)

    monkeypatch.setattr(entry_loads, "wait", told)
    return event


def test_a_byte_a_value_is_near(store: TemplateStore) -> None:
    name, values = written(store, 500)
    path = store._tiers[0].find(name)
    assert path is not None
    loads = EntryLoads(store, CPU, 2**20)
    entry = loads.begin(path, SHAPES)
    assert entry is not None and loads.is_there(path)
    for number, value in enumerate(values):
        out = torch.empty_like(value)
        entry.block(number).into(out)
        assert ((out - value).abs() <= value.abs().amax(1, keepdim=True) / 254 + 1e-6).all()
    assert entry.waited_s == 0


def test_what_is_not_finite_is_nothing() -> None:
    out = torch.empty(2, 3)
    Codes.of(torch.tensor([[1.0, torch.nan, -torch.inf], [0.0, 0.0, 0.0]])).into(out)
    assert torch.equal(out, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))


def test_from_disk_it_comes_in_order_and_is_brought_near(store: TemplateStore, somebody_waits: threading.Event) -> None:
    name, _ = written(store, 500)
    path, came, read = of_disk(store, name), [], []

    def noted(codes: Codes) -> Codes:
        assert somebody_waits.wait(10)
        read.append(tuple(codes.values.shape))
        return slowly(codes)

    loads = EntryLoads(store, CPU, 2**20, noted, came.append)
    entry = loads.begin(path, SHAPES)
    assert entry is not None and not loads.is_there(path)
    entry.block(2)
    assert read == SHAPES and entry.waited_s > 0
    deadline = time.monotonic() + 5
    while not came and time.monotonic() < deadline:
        time.sleep(0.01)
    assert came == [path] and loads.pace(path) < 1000 / PAUSE_S
    store.bring_near(path)
    assert store._tiers[0].find(name) is not None


def test_what_is_not_wanted_does_not_come(store: TemplateStore) -> None:
    name, _ = written(store, 500)
    entry = EntryLoads(store, CPU, 2**20, slowly).begin(of_disk(store, name), SHAPES, wanted=[2])
    assert entry is not None and entry.numbers == {2}
    assert tuple(entry.block(2).values.shape) == SHAPES[2]


@pytest.mark.parametrize("shapes", [[*SHAPES[:2], (4, 16)], [*SHAPES, (4, 4)]])
def test_entries_of_other_networks_are_none(store: TemplateStore, shapes: list[tuple[int, int]]) -> None:
    name, _ = written(store, 500)
    loads, path = EntryLoads(store, CPU, 2**20), store._tiers[0].find(name)
    assert path is not None and loads.begin(path, shapes) is None
    assert loads.begin(path.with_name("gone.safetensors"), SHAPES) is None


def test_a_read_that_fails_is_told_where_it_is_waited_for(store: TemplateStore) -> None:
    def broken(_codes: Codes) -> Codes:
        raise OSError("the disk is broken")

    name, _ = written(store, 500)
    entry = EntryLoads(store, CPU, 2**20, broken).begin(of_disk(store, name), SHAPES)
    assert entry is not None
    with pytest.raises(EntryLostError, match="the disk is broken"):
        entry.block(1)
    assert entry.is_lost


def test_what_cannot_be_right_is_lost(store: TemplateStore) -> None:
    def spoilt(codes: Codes) -> Codes:
        return Codes(codes.values, torch.full_like(codes.scales, torch.nan))

    (name, _), near = written(store, 500), list[Path]()
    entry = EntryLoads(store, CPU, 2**20, spoilt, near.append).begin(of_disk(store, name), SHAPES)
    assert entry is not None
    with pytest.raises(EntryLostError, match=r"block 0 of .* is not finite"):
        entry.block(0)
    with pytest.raises(EntryLostError):
        entry.block(2)
    assert near == []


def test_another_entry_under_its_name_is_none_and_goes(store: TemplateStore) -> None:
    (first, _), (second, _) = written(store, 500), written(store, 400, 1)
    memory = store._tiers[0]
    paths = [memory.find(name) for name in (first, second)]
    assert paths[0] is not None and paths[1] is not None
    paths[0].unlink()
    paths[1].rename(paths[0])
    assert store.open(paths[0]) is None and not paths[0].exists()


def test_what_steps_wait_is_told(store: TemplateStore, somebody_waits: threading.Event) -> None:
    def once_waited_for(codes: Codes) -> Codes:
        assert somebody_waits.wait(10)
        return slowly(codes)

    (name, _), waited = written(store, 500), list[float]()
    entry = EntryLoads(store, CPU, 2**20, once_waited_for, waited=waited.append).begin(of_disk(store, name), SHAPES)
    assert entry is not None
    entry.block(2)
    assert entry.waited_s == sum(waited) > 0
    entry.block(0)
    assert len(waited) == 1, "it was there by then"


def test_a_line_has_the_next_step_come_and_corrects_by_the_last(store: TemplateStore) -> None:
    (first, values), (second, later) = written(store, 500), written(store, 400, 1)
    track = Track("1", "2", {500.0: of_disk(store, first), 400.0: of_disk(store, second)})
    line = TemplateLine(
        track, [510.0, 410.0, 100.0], 50.0, SHAPES, EntryLoads(store, CPU, 2**20, slowly), same_prompt=True
    )
    assert [track.nearest(each, 50.0) is not None for each in (510.0, 410.0, 100.0)] == [True, True, False]
    assert line.reaches(0) and not line.reaches(2)
    line.look_ahead(1, wanted=[0, 1])
    assert line.lacks(0) == set() and line.lacks(1) == {2}
    own = [value + 1 for value in values]
    line.keep(0, own, [torch.ones(len(value), 1) for value in values])
    assert line.error is not None and 0 < float(line.error) < 1.5
    out = torch.empty(SHAPES[0])
    line.at(1, 0, out)
    assert torch.allclose(out, later[0] + 1, atol=0.05)
    line.forget()
    line.at(1, 0, out)
    assert torch.allclose(out, later[0], atol=0.05), "it is corrected no more"
