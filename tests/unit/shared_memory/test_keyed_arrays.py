"""Arrays by key: what is put is what is got, by whichever process, until it goes for others."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from processes import other_process
from swiftdiffusion.python_backends.shared_memory.host_cache import EvictedError, HostCacheFullError
from swiftdiffusion.python_backends.shared_memory.keyed_arrays import KeyedArrays, key_of

KIB = 1024
ARRAYS = st.dictionaries(
    st.text("abcdefghij_", min_size=1, max_size=10),
    arrays_of.arrays(
        st.sampled_from(["float32", "float16", "int64", "int32", "uint8", "bool"]),
        arrays_of.array_shapes(min_dims=0, max_dims=4, max_side=5),
    ),
    min_size=1,
    max_size=4,
)
PUT = """
import numpy as np
from swiftdiffusion.python_backends.shared_memory.keyed_arrays import KeyedArrays
kept = KeyedArrays(Path(sys.argv[1]), 2**20, 1.0)
keys = [kept.put({"tokens": np.full((2, 3), number, np.float32)}) for number in (1, 2)]
leases = [kept.lease(keys[0])]
Path(sys.argv[2]).write_text(" ".join(keys))
"""


def numbers(value: int, size: int = 256) -> dict[str, np.ndarray]:
    """A KiB, each of other content."""
    return {"tokens": np.full(size, value, np.float32)}


def opened(directory: Path, kib: float = 100) -> KeyedArrays:
    return KeyedArrays(directory / "arrays", int(kib * KIB), 1.0)


def is_there(kept: KeyedArrays, key: str) -> bool:
    """Without a use of it."""
    return (kept._cache.directory / f"{key}.safetensors").exists()


@given(arrays=ARRAYS)
def test_what_is_put_is_what_is_got(arrays: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        kept = opened(Path(directory))
        key = kept.put(arrays)
        got = kept.get(key)
        assert got.keys() == arrays.keys()
        for name, array in arrays.items():
            assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
            assert got[name].tobytes() == array.tobytes()
        assert key == key_of(got) == kept.put(got)


@given(arrays=ARRAYS, others=ARRAYS)
def test_a_key_is_of_names_types_shapes_and_values(
    arrays: dict[str, np.ndarray], others: dict[str, np.ndarray]
) -> None:
    def content(of: dict[str, np.ndarray]) -> list[tuple[object, ...]]:
        return sorted((name, array.dtype.str, array.shape, array.tobytes()) for name, array in of.items())

    assert (key_of(arrays) == key_of(others)) == (content(arrays) == content(others))
    assert key_of(arrays) == key_of(dict(reversed(arrays.items())))
    name, array = next(iter(arrays.items()))
    for changed in (array.reshape(1, *array.shape), array.astype(np.float64), np.append(array, array[..., None].flat)):
        assert key_of(arrays | {name: changed}) != key_of(arrays)


def test_what_is_got_is_the_readers_own(tmp_path: Path) -> None:
    kept = opened(tmp_path)
    key = kept.put(numbers(1))
    kept.get(key)["tokens"][:] = 5
    assert (kept.get(key)["tokens"] == 1).all()


def test_equal_arrays_lie_there_once(tmp_path: Path) -> None:
    kept = opened(tmp_path)
    assert kept.put(numbers(1)) == kept.put(numbers(1)) != kept.put(numbers(2))
    assert len(list((tmp_path / "arrays").glob("*.safetensors"))) == 2


def test_the_least_recently_used_go_first_and_are_put_again(tmp_path: Path) -> None:
    kept = opened(tmp_path, 4.5)
    keys = [kept.put(numbers(value)) for value in range(3)]
    kept.get(keys[0])
    kept.put(numbers(3))
    assert [is_there(kept, key) for key in keys] == [True, False, True]
    with pytest.raises(EvictedError, match="no longer in the cache"):
        kept.get(keys[1])
    assert kept.put(numbers(1), keys[1]) == keys[1]
    assert (kept.get(keys[1])["tokens"] == 1).all()


def test_putting_again_is_a_use(tmp_path: Path) -> None:
    kept = opened(tmp_path, 4.5)
    keys = [kept.put(numbers(value)) for value in range(3)]
    kept.put(numbers(0), keys[0])
    kept.put(numbers(3))
    assert [is_there(kept, key) for key in keys] == [True, False, True]


def test_leased_ones_stay_and_nobody_waits_for_room(tmp_path: Path) -> None:
    kept = opened(tmp_path, 2)
    key = kept.put(numbers(1))
    with kept.lease(key), pytest.raises(HostCacheFullError) as caught:
        kept.put(numbers(2))
    assert not caught.value.for_ever
    kept.put(numbers(2))
    with pytest.raises(EvictedError):
        kept.lease(key)


def test_what_is_larger_than_all_room_is_refused_and_nothing_goes_for_it(tmp_path: Path) -> None:
    kept = opened(tmp_path, 2)
    key = kept.put(numbers(1))
    with pytest.raises(HostCacheFullError) as caught:
        kept.put(numbers(2, size=2048))
    assert caught.value.for_ever
    assert is_there(kept, key)


def test_they_take_no_more_than_their_share_of_the_machines_memory(tmp_path: Path) -> None:
    kept = KeyedArrays(tmp_path / "arrays", 2**40, 1e-12)
    with pytest.raises(HostCacheFullError, match="more than the whole host cache"):
        kept.put(numbers(1))


def test_another_process_gets_them_and_its_leases_end_with_it(tmp_path: Path) -> None:
    kept, said = opened(tmp_path, 1.5), tmp_path / "keys"
    with other_process(PUT, str(tmp_path / "arrays"), str(said)) as writer:
        first, second = said.read_text().split()
        assert [float(kept.get(key)["tokens"][1, 2]) for key in (first, second)] == [1.0, 2.0]
        assert kept.put({"tokens": np.full((2, 3), 1, np.float32)}) == first
        kept.put(numbers(3, size=220))
        assert [is_there(kept, key) for key in (first, second)] == [True, False]
        writer.kill()
        writer.wait()
        kept.put(numbers(4, size=220))
        assert not is_there(kept, first)
