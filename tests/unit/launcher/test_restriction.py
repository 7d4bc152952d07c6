"""Which servers are restricted, and what a file with a key has to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from swiftdiffusion.python_backends.launcher.errors import AdminKeyError
from swiftdiffusion.python_backends.launcher.restriction import AdminKey, admin_headers, choose_admin_key


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    AdminKey("0123456789abcdef").write(path)
    return path


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "fe80::1", "gpu7.example"])
def test_every_address_but_loopback_is_restricted(host: str) -> None:
    key, other = choose_admin_key(host, None, None), choose_admin_key(host, None, None)
    assert key and other and key != other
    assert len(key.value) >= 32
    assert choose_admin_key(host, False, None) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_restricted_when_asked_for(host: str, key_file: Path) -> None:
    assert choose_admin_key(host, None, None) is None
    assert choose_admin_key(host, True, None)
    assert choose_admin_key(host, None, key_file) == AdminKey("0123456789abcdef")


def test_own_restrictions_of_the_operator_stand(key_file: Path) -> None:
    apis = "model-repository,shared-memory:x=y"
    own = [f"--http-restricted-api={apis}", "--grpc-restricted-protocol", apis]
    assert choose_admin_key("0.0.0.0", None, None, own) is None
    for restrict, file in ((True, None), (None, key_file)):
        with pytest.raises(AdminKeyError, match="--http-restricted-api and --restrict"):
            choose_admin_key("0.0.0.0", restrict, file, own)


@pytest.mark.parametrize(
    "own",
    [
        ["--http-restricted-api=trace:x=y"],
        ["--http-restricted-api=model-repository,shared-memory:x=y"],
        ["--http-restricted-api=model-repository:x=y", "--grpc-restricted-protocol=model-repository,shared-memory:x=y"],
    ],
)
def test_own_restrictions_have_to_close_what_loads_code(own: list[str]) -> None:
    with pytest.raises(AdminKeyError, match="open to the network, by which code can be loaded"):
        choose_admin_key("0.0.0.0", None, None, own)
    assert choose_admin_key("127.0.0.1", None, None, own) is None
    assert choose_admin_key("0.0.0.0", False, None, own) is None


@pytest.mark.parametrize("option", ["--http-address", "--grpc-address"])
def test_addresses_that_are_given_to_tritonserver_itself_count(option: str) -> None:
    for extra in ([f"{option}=0.0.0.0"], [option, "0.0.0.0"]):
        assert choose_admin_key("127.0.0.1", None, None, extra)
    assert choose_admin_key("127.0.0.1", None, None, [option, "127.0.0.1"]) is None


def test_options_that_contradict_each_other(key_file: Path) -> None:
    with pytest.raises(AdminKeyError, match="contradict"):
        choose_admin_key("0.0.0.0", False, key_file)


@pytest.mark.parametrize("text", ["", "short", "0123456789abcde", "0123456789 abcdef", "0123456789abcdé0", "a" * 257])
def test_a_file_without_a_key(key_file: Path, text: str) -> None:
    key_file.write_text(text)
    with pytest.raises(AdminKeyError, match="holds no key; wanted: 16 to 256 letters"):
        AdminKey.read(key_file)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_of_others_too(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(AdminKeyError, match="not this user's alone"):
        AdminKey.read(key_file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(AdminKeyError, match="cannot be read"):
            AdminKey.read(path)


def test_a_key_is_not_shown_by_chance() -> None:
    assert "0123456789abcdef" not in repr(AdminKey("0123456789abcdef"))


def test_a_command_line_tells_its_key() -> None:
    assert admin_headers(["tritonserver", *AdminKey("0123456789abcdef").arguments()]) == {
        "admin-key": "0123456789abcdef"
    }
    assert admin_headers(["--http-restricted-api=trace,model-repository:x=y=z"]) == {"x": "y=z"}
    assert admin_headers(["--http-restricted-api=trace:x=y", "--grpc-restricted-protocol=model-repository:x=y"]) == {}
