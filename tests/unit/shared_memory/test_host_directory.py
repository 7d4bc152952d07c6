"""Where the host cache lies, and what becomes of it when its server goes."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from processes import other_process
from swiftdiffusion.python_backends.common.runtime_directory import VARIABLE
from swiftdiffusion.python_backends.shared_memory import host_directory
from swiftdiffusion.python_backends.shared_memory.host_cache import host_cache_directory
from swiftdiffusion.python_backends.shared_memory.host_directory import remove_host_cache, remove_stale_host_caches


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared memory of the test's own, and a server's runtime directory."""
    path = tmp_path / "shm"
    path.mkdir()
    monkeypatch.setattr(host_directory, "SHARED_MEMORY", path)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "runtime"))
    return path


def test_all_processes_of_a_server_have_one_directory(shared: Path, tmp_path: Path) -> None:
    directory = host_cache_directory()
    assert directory.parent == shared
    assert directory.stat().st_mode & 0o777 == 0o700
    assert host_cache_directory(tmp_path / "runtime") == directory
    assert host_cache_directory(tmp_path / "other") != directory


def test_without_shared_memory_it_is_in_the_runtime_directory(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_directory, "SHARED_MEMORY", tmp_path / "nowhere")
    directory = host_cache_directory()
    assert directory == tmp_path / "runtime" / "loras"
    assert directory.is_dir()
    remove_stale_host_caches()


def test_somebody_elses_directory_is_refused(shared: Path) -> None:
    directory = host_cache_directory()
    directory.chmod(0o755)
    with pytest.raises(PermissionError, match="not a directory of this user alone"):
        host_cache_directory()
    shutil.rmtree(directory)
    directory.symlink_to(shared)
    with pytest.raises(PermissionError):
        host_cache_directory()


def test_a_host_cache_goes_when_its_server_has_gone(shared: Path, tmp_path: Path) -> None:
    code = (
        "from swiftdiffusion.python_backends.shared_memory import host_directory\n"
        "host_directory.SHARED_MEMORY = Path(sys.argv[1]); host_directory.host_cache_directory(Path(sys.argv[2]))"
    )
    mine = host_cache_directory()
    with other_process(code, str(shared), str(tmp_path / "other")) as server:
        [other] = set(shared.iterdir()) - {mine}
        (other / "a.safetensors").write_bytes(b"x")
        remove_stale_host_caches()
        assert other.is_dir()
        server.kill()
        server.wait()
        remove_stale_host_caches()
        assert not other.exists()
    assert mine.is_dir()
    remove_host_cache(tmp_path / "runtime")
    assert not mine.exists()
    assert host_cache_directory() == mine
    assert mine.is_dir()


def test_what_is_no_host_cache_stays(shared: Path, tmp_path: Path) -> None:
    link, file = shared / f"{host_directory.PREFIX}link", shared / f"{host_directory.PREFIX}file"
    link.symlink_to(tmp_path)
    file.touch()
    remove_stale_host_caches()
    assert link.is_symlink()
    assert file.exists()


def test_the_owner_of_a_directory_that_goes_makes_it_again(shared: Path) -> None:
    """Processes that start while a launcher removes left-overs all end with a directory that exists."""
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            remove_stale_host_caches()

    thread = threading.Thread(target=remove, daemon=True)
    thread.start()
    code = (
        "import os\nfrom swiftdiffusion.python_backends.shared_memory import host_directory\n"
        "host_directory.SHARED_MEMORY = Path(sys.argv[1])\n"
        "for index in range(200):\n"
        "    found = host_directory.host_cache_directory(Path(sys.argv[1]).parent / str(index))\n"
        "    (found / 'x').touch()"
    )
    with other_process(code, str(shared)):
        stop.set()
        thread.join()
        assert len(list(shared.glob("*/x"))) == 200
