"""Who may come in: a file of keys, looked at again while the gateway runs."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import traceback
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.clients.gateway import keys as keys_module
from swiftdiffusion.clients.gateway.errors import ApiError
from swiftdiffusion.clients.gateway.keys import Caller, Keys, KeysError

ALICE, BOB = "sk-alice-0123456789abcdef", "sk-bob-fedcba9876543210"
TWO = f"""
[alice]
key = "{ALICE}"
concurrent = 2

[bob]
key_sha256 = "{hashlib.sha256(BOB.encode()).hexdigest()}"
"""


def bearer(key: str) -> str:
    return f"Bearer {key}"


def basic(user: str, key: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(TWO, "utf-8")
    return path


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at with every request."""
    monkeypatch.setattr(keys_module, "LOOKED_AT_EVERY_S", 0.0)


def rewrite(file: Path, text: str) -> None:
    """As editors do: another file in its place."""
    new = file.with_suffix(".new")
    new.write_text(text, "utf-8")
    new.replace(file)


def is_known(keys: Keys, authorization: str | None) -> bool:
    try:
        keys.caller(authorization, "10.0.0.1")
    except ApiError as error:
        assert (error.status, error.code) == (401, "invalid_api_key")
        return False
    return True


@pytest.mark.parametrize(
    ("authorization", "caller"),
    [
        (bearer(ALICE), Caller("alice", 2)),
        (f"bEaReR   {ALICE}  ", Caller("alice", 2)),
        (bearer(BOB), Caller("bob", 8)),
        (basic("anybody", ALICE), Caller("alice", 2)),
        (basic("", BOB), Caller("bob", 8)),
    ],
)
def test_who_has_a_key_is_its_caller(file: Path, authorization: str, caller: Caller) -> None:
    assert Keys(file).caller(authorization, "10.0.0.1") == caller


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        " ",
        "Bearer",
        "Bearer ",
        ALICE,
        bearer(ALICE[:-1]),
        bearer(ALICE + "x"),
        bearer(ALICE.upper()),
        bearer(f"{ALICE} {ALICE}"),
        bearer("alice"),
        bearer(hashlib.sha256(BOB.encode()).hexdigest()),
        bearer("\x00" * 40),
        bearer("ÿ" * 40),
        bearer("x" * 100_000),
        f"Digest {ALICE}",
        f"Basic {ALICE}",
        "Basic ====",
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
        "Basic " + base64.b64encode(ALICE.encode()).decode(),
        basic(ALICE, ""),
    ],
)
def test_who_has_none_is_refused(file: Path, authorization: str | None) -> None:
    assert not is_known(Keys(file), authorization)


@given(st.text(max_size=200))
def test_any_other_header_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    if not file.exists():
        file.write_text(TWO, "utf-8")
    assert not is_known(Keys(file), text)


def test_without_a_file_everybody_is_a_caller_by_address_without_a_limit() -> None:
    keys = Keys(None)
    assert keys.caller(None, "10.0.0.1") == keys.caller(bearer(ALICE), "10.0.0.1") == Caller("10.0.0.1")
    with keys.busy(Caller("10.0.0.1")), keys.busy(Caller("10.0.0.1")), keys.busy(Caller("10.0.0.1")):
        pass


def test_a_key_has_so_many_requests_at_once_and_no_more(file: Path) -> None:
    keys = Keys(file)
    alice, bob = keys.caller(bearer(ALICE), "x"), keys.caller(bearer(BOB), "x")
    with keys.busy(alice):
        with keys.busy(alice):
            with pytest.raises(ApiError, match="2 requests of this key") as caught, keys.busy(alice):
                pytest.fail("a third came in")
            assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
            assert caught.value.retry_after == 1
            with keys.busy(bob):
                pass
        with keys.busy(alice):
            pass
    with pytest.raises(ZeroDivisionError), keys.busy(alice):
        raise ZeroDivisionError
    with keys.busy(alice), keys.busy(alice):
        pass


def test_callers_that_have_gone_leave_nothing_behind() -> None:
    keys = Keys(None)
    tracemalloc.start()
    for number in range(20_000):
        with keys.busy(keys.caller(None, f"2001:db8::{number:x}")):
            pass
    here = [tracemalloc.Filter(True, module) for module in (__file__, keys_module.__file__)]  # other threads go on
    grown = sum(each.size for each in tracemalloc.take_snapshot().filter_traces(here).statistics("filename"))
    tracemalloc.stop()
    assert grown < 100_000


@pytest.mark.usefixtures("at_once")
def test_a_changed_file_counts_from_then_on(file: Path) -> None:
    keys, third = Keys(file), "sk-carol-0123456789abcdef"
    assert not is_known(keys, bearer(third))
    rewrite(file, f'[carol]\nkey = "{third}"\n')
    assert keys.caller(bearer(third), "x") == Caller("carol", 8)
    assert not is_known(keys, bearer(ALICE))
    assert not is_known(keys, bearer(BOB))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("text", ["[alice", f'[alice]\nkey = "{ALICE}"\nkeys = 3', f'[a]\nkey = "{ALICE[:12]}"', None])
def test_while_the_file_is_broken_or_gone_what_it_held_goes_on(
    file: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(file)
    rewrite(file, text) if text is not None else file.unlink()
    assert is_known(keys, bearer(ALICE)) and is_known(keys, bearer(BOB))
    assert is_known(keys, bearer(ALICE))
    said = [record for record in caplog.records if "the keys stay as they were" in record.getMessage()]
    assert len(said) == 1, "once for each change, not with every request"
    rewrite(file, TWO.replace(ALICE, "sk-alice-another-key"))
    assert is_known(keys, bearer("sk-alice-another-key")) and not is_known(keys, bearer(ALICE))


def test_between_two_looks_the_file_is_left_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "LOOKED_AT_EVERY_S", 3600.0)
    keys = Keys(file)
    file.unlink()
    assert is_known(keys, bearer(ALICE))


BROKEN = {
    "no TOML": f'[alice\nkey = "{ALICE}"',
    "no text": b"\xff\xfe",
    "no table": f'"{ALICE}" = "alice"',
    "a key for a field": f'[alice]\n{ALICE} = "key"',
    "a key for a name": f"[{ALICE}]\nconcurrent = 2",
    "a key for a name, twice wrong": f'["{ALICE} "]\nkey = "{BOB}"',
    "a key where its hash belongs": f'[alice]\nkey_sha256 = "{ALICE}"',
    "both": f'[alice]\nkey = "{ALICE}"\nkey_sha256 = "{"0" * 64}"',
    "neither": "[alice]\nconcurrent = 2",
    "short": f'[alice]\nkey = "{ALICE[:12]}"',
    "long": f'[alice]\nkey = "{ALICE * 30}"',
    "no text for a key": f'[alice]\nkey = ["{ALICE}"]',
    "what no header can hold": '[alice]\nkey = "sk-schlüssel-0123456789"',
    "a space at its end": f'[alice]\nkey = "{ALICE} "',
    "no number": f'[alice]\nkey = "{ALICE}"\nconcurrent = "{BOB}"',
    "none at once": f'[alice]\nkey = "{ALICE}"\nconcurrent = 0',
    "twice the same": f'[alice]\nkey = "{ALICE}"\n[bob]\nkey = "{ALICE}"',
    "once plain, once hashed": f'{TWO}\n[carol]\nkey = "{BOB}"',
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_used_is_told_without_a_key(tmp_path: Path, case: str) -> None:
    file, text = tmp_path / "keys.toml", BROKEN[case]
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(KeysError) as caught:
        Keys(file)
    sentence = str(caught.value)
    assert sentence.startswith(f"{file}: ")
    assert not any(key[:12] in sentence for key in (ALICE, BOB))
    shown = traceback.format_exception(caught.value)
    assert not any(key[:12] in line for key in (ALICE, BOB) for line in shown)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("a key for a name, twice wrong", "entry 1: String should match pattern '^[A-Za-z"),
        ("short", "entry 1: key: String should have at least 16 characters"),
        ("a key for a field", "entry 1: a field that there is not; allowed: key, key_sha256, concurrent"),
        ("both", "entry 1: Value error, wanted: either key or key_sha256"),
        ("no table", "entry 1: it is no table; wanted: [NAME]"),
        ("once plain, once hashed", "two callers have the same key"),
    ],
)
def test_the_sentence_says_where_and_what(tmp_path: Path, case: str, said: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(str(BROKEN[case]), "utf-8")
    with pytest.raises(KeysError) as caught:
        Keys(file)
    assert str(caught.value).startswith(f"{file}: {said}")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="No such file"):
        Keys(tmp_path / "keys.toml")


@pytest.mark.usefixtures("at_once")
def test_no_log_record_holds_a_key(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = Keys(file)
    for authorization in (bearer(ALICE), basic("x", BOB), bearer("sk-mallory-0123456789"), "Basic !!"):
        is_known(keys, authorization)
    for text in [TWO + "\n", *(text for text in BROKEN.values() if isinstance(text, str))]:
        rewrite(file, text)
        os.utime(file, ns=(0, hash(text) % 10**9))
        is_known(keys, bearer(ALICE))
    assert len(caplog.records) > 10
    told = "\n".join(record.getMessage() + str(record.exc_info) for record in caplog.records)
    assert not any(key in told for key in (ALICE[:12], BOB[:12], "mallory"))
