"""Parts of the launcher that need no server: log, options, binary."""

import os
import sys
import time
from pathlib import Path

import pytest

from swiftdiffusion.python_backends.launcher.binary import ServerBinary, find_server_binary
from swiftdiffusion.python_backends.launcher.directories import make_private_directory, plain_path
from swiftdiffusion.python_backends.launcher.errors import (
    InvalidRepositoryError,
    LauncherError,
    MissingLibraryError,
    NumpyVersionError,
    PythonVersionError,
    ServerBinaryNotFoundError,
    UnsupportedOptionError,
)
from swiftdiffusion.python_backends.launcher.loading import cleaned
from swiftdiffusion.python_backends.launcher.log import (
    LogFollower,
    ModelEvent,
    error_messages,
    loaded_models,
    model_event,
    tail,
)
from swiftdiffusion.python_backends.launcher.options import ServerOptions, models_of
from swiftdiffusion.python_backends.launcher.python_stub import (
    PYTHON_VERSION,
    STUB,
    check_numpy,
    check_stub,
    embedded_python,
)
from swiftdiffusion.python_backends.launcher.triton_server import TritonServer

LOG = """\
I1121 04:14:23.014037 5177 model_lifecycle.cc:472] "loading: fine:1"
I1121 04:14:24.594372 5177 model_lifecycle.cc:839] "successfully loaded 'fine'"
E1121 04:14:24.792196 5177 model_lifecycle.cc:642] "failed to load 'boom' version 1: Internal: ValueError: no\\n\\nAt:\\n  model.py(3): initialize\\n"
I1121 04:14:24.792212 5177 model_lifecycle.cc:777] "failed to load 'boom'"
+-------+---------+
| Model | Version |
+-------+---------+
"""  # noqa: E501


def test_events_of_models() -> None:
    events = [event for line in LOG.splitlines() if (event := model_event(line))]
    assert events == [ModelEvent("fine", "loading"), ModelEvent("fine", "loaded"), ModelEvent("boom", "failed")]
    assert loaded_models(LOG) == {"fine": "READY", "boom": "UNAVAILABLE"}


def test_error_messages_are_unescaped_and_tables_left_out(tmp_path: Path) -> None:
    (message,) = error_messages(LOG)
    assert message.endswith("ValueError: no\n\nAt:\n  model.py(3): initialize\n")
    log = tmp_path / "log"
    log.write_text(LOG)
    assert tail(log.read_text(), 2).count("boom") == 2


def test_a_reason_is_one_line_without_the_code_s_places() -> None:
    (message,) = error_messages(LOG)
    reason = message.partition("version 1: ")[2]
    assert cleaned(reason) == "ValueError: no"
    assert cleaned(f"load failed for model 'boom': version 1 is at UNAVAILABLE state: {reason};\n") == "ValueError: no"
    assert cleaned("no weights:\n  none at all") == "no weights: none at all"


def test_follower_passes_on_every_line_over_truncations(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    lines: list[str] = []
    follower = LogFollower(log, lines.append, truncate_above=1000)
    expected = [f"line {number} äö" for number in range(500)]
    halves = ["".join(f"{line}\n" for line in half) for half in (expected[:250], expected[250:])]
    with log.open("a") as file:
        for half in halves:
            print(half, end="", file=file, flush=True)  # one write: seen whole, and so truncated whole
            while log.stat().st_size:
                time.sleep(0.01)
    follower.close()
    assert lines == expected


def test_models_of_a_repository(tmp_path: Path) -> None:
    (tmp_path / "ensemble" / "1").mkdir(parents=True)
    (tmp_path / "sdxl").mkdir()
    (tmp_path / "sdxl" / "config.pbtxt").touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").touch()
    assert models_of(tmp_path) == ["ensemble", "sdxl"]


@pytest.mark.parametrize("make", [False, True])
def test_repository_without_models_is_refused(tmp_path: Path, make: bool) -> None:
    repository = tmp_path / "repository"
    if make:
        repository.mkdir()
    with pytest.raises(InvalidRepositoryError, match=str(repository)):
        TritonServer(repository).start()


def test_every_model_is_loaded_and_sizes_are_bytes(tmp_path: Path) -> None:
    options = ServerOptions(shm_default_mib=4, extra_arguments=("--log-verbose=1",))
    arguments = options.arguments(find_server_binary(), tmp_path)
    assert {"--model-control-mode=explicit", "--load-model=*", "--log-verbose=1"} <= set(arguments)
    assert "--backend-config=python,shm-default-byte-size=4194304" in arguments


def test_option_that_a_binary_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOptionError, match="--http-max-input-size"):
        ServerOptions(http_max_input_mib=128).arguments(ServerBinary(Path("/bin/ls")), tmp_path)


def test_configured_binary_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configured", "tritonserver"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server_binary() == ServerBinary(tmp_path / "tritonserver")
    monkeypatch.setenv("TRITONSERVER", str(tmp_path / "configured"))
    assert find_server_binary() == ServerBinary(tmp_path / "configured")
    monkeypatch.setenv("TRITONSERVER", str(tmp_path / "missing"))
    with pytest.raises(ServerBinaryNotFoundError, match="missing"):
        find_server_binary()


def test_stubs_find_this_interpreter_and_the_wheels_server_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITONSERVER", raising=False)
    wheel = Path("/site/pytriton/tritonserver")
    environment = ServerBinary(wheel / "bin/tritonserver", wheel).environment(
        {"PATH": "/bin", "OMP_WAIT_POLICY": "active"}
    )
    assert environment["LD_LIBRARY_PATH"].endswith("/site/nvidia_pytriton.libs")
    assert environment["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/bin"
    assert environment["OMP_WAIT_POLICY"] == "active"
    binary = ServerBinary(Path("/opt/tritonserver/bin/tritonserver"))
    installed = binary.environment({"PATH": "/bin", "LD_LIBRARY_PATH": "/opt/cuda"})
    assert installed["PATH"] == environment["PATH"]
    assert installed["LD_LIBRARY_PATH"].startswith("/opt/cuda")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert "LD_LIBRARY_PATH" not in binary.environment({"PATH": "/bin"})
    assert installed["OMP_WAIT_POLICY"] == "passive"


def test_server_for_another_python_is_refused_with_both_versions(fine: Path) -> None:
    server, stub = fine / "bin" / "tritonserver", fine / "backends" / "python" / STUB
    for file in (server, stub):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"\x7fELF\0libpython3.9.so.1.0\0")
    with pytest.raises(PythonVersionError, match=rf"runs Python 3\.9, but this is Python {PYTHON_VERSION}"):
        TritonServer(fine, binary=ServerBinary(server)).start()


def test_wheel_without_a_stub_for_this_python_is_refused_with_those_it_has(tmp_path: Path) -> None:
    (tmp_path / "python_backend_stubs" / "3.8").mkdir(parents=True)
    with pytest.raises(PythonVersionError, match=r"it has: 3\.8"):
        ServerBinary(tmp_path / "bin" / "tritonserver", tmp_path).check({})


def test_missing_libpython_is_explained(tmp_path: Path) -> None:
    binary = find_server_binary()
    binary.check(os.environ)
    stub = binary.stub()
    assert stub is not None
    assert embedded_python(stub) == PYTHON_VERSION
    other = tmp_path / STUB
    other.write_bytes(stub.read_bytes().replace(b".so.1.0", b".so.9.9"))
    other.chmod(0o755)
    with pytest.raises(MissingLibraryError, match=rf"libpython{PYTHON_VERSION}\.so\.9\.9.*apt install libpython"):
        check_stub(other, binary.environment(os.environ))


def test_a_numpy_that_the_stub_cannot_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = find_server_binary()
    old = binary.stub()
    assert old is not None
    check_numpy(old, "1.26.4")
    with pytest.raises(NumpyVersionError, match=r"numpy 2\.2\.6 is installed, .* too old; wanted: .*numpy<2.*24\.11"):
        check_numpy(old, "2.2.6")
    new = tmp_path / STUB
    new.write_bytes(old.read_bytes() + b"\0numpy._core\0")
    check_numpy(new, "2.2.6")
    (tmp_path / "numpy-2.2.6.dist-info").mkdir()
    (tmp_path / "numpy-2.2.6.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.2.6\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NumpyVersionError, match="numpy 2"):
        binary.check(os.environ)


@pytest.fixture
def fine(tmp_path: Path) -> Path:
    """A repository of one model that nobody starts."""
    (tmp_path / "calm" / "1").mkdir(parents=True)
    return tmp_path


def test_a_tmpdir_that_the_backend_cannot_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "möbel lager"
    odd.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    with pytest.raises(LauncherError, match="lager', which Triton's Python backend cannot use; wanted: a TMPDIR"):
        make_private_directory()
    assert not list(odd.iterdir())


def test_a_repository_of_any_path_is_linked_where_the_backend_can_use_it(tmp_path: Path) -> None:
    odd = tmp_path / "möbel lager"
    odd.mkdir()
    assert plain_path(tmp_path, tmp_path) == tmp_path
    link = plain_path(odd, tmp_path)
    assert link.samefile(odd)
    assert " " not in str(link)
