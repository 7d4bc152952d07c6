"""Pictures by URL: only by those that were given out, for their time, in bounded memory."""

from __future__ import annotations

import tracemalloc
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.clients.gateway import links as links_module
from swiftdiffusion.clients.gateway.errors import ApiError
from swiftdiffusion.clients.gateway.links import KeptPicture, Links

Link = tuple[str, int, str]


def taken_apart(link: str) -> Link:
    """Name, expiry and signature, as the route gets them."""
    parts = urlsplit(link)
    given = parse_qs(parts.query, strict_parsing=True)
    return parts.path, int(given["expires"][0]), given["signature"][0]


def status(links: Links, link: Link) -> int:
    try:
        links.get(*link)
    except ApiError as error:
        return error.status
    return 200


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_a_picture_is_had_by_its_url_as_often_as_wanted(file_format: str) -> None:
    links = Links(100, 60.0)
    link = taken_apart(links.put(b"picture", file_format))
    for _ in range(2):
        assert links.get(*link) == KeptPicture(b"picture", f"image/{file_format}", link[1])
    assert link[0].endswith(f".{file_format}")


def test_every_picture_has_a_name_of_its_own_that_nobody_guesses() -> None:
    links = Links(10_000, 60.0)
    names = {taken_apart(links.put(b"the same", "png"))[0] for _ in range(500)}
    assert len(names) == 500
    assert min(map(len, names)) > 20


def test_another_signature_name_or_time_is_refused() -> None:
    links = Links(100, 60.0)
    name, expires, signature = taken_apart(links.put(b"picture", "png"))
    other, _, others_signature = taken_apart(links.put(b"other", "png"))
    for link in (
        (name, expires, ""),
        (name, expires, signature[:-1]),
        (name, expires, signature.upper()),
        (name, expires, "0" * 64),
        (name, expires, others_signature),
        (other, expires, signature),
        (name, expires + 1, signature),
        (name, -1, signature),
        (name, 10**4000, signature),
        (f"{name}?{expires}", expires, signature),
        ("", expires, signature),
        (f"../{name}", expires, signature),
    ):
        assert status(links, link) == 403
    assert status(Links(100, 60.0), (name, expires, signature)) == 403, "another gateway's"
    assert status(links, (name, expires, signature)) == 200


@given(st.text(), st.integers(), st.text())
def test_whatever_a_url_says_it_is_refused(name: str, expires: int, signature: str) -> None:
    links = Links(100, 60.0)
    links.put(b"picture", "png")
    assert status(links, (name, expires, signature)) == 403


def test_after_its_time_a_picture_is_gone() -> None:
    links = Links(100, -2.0)
    link = taken_apart(links.put(b"picture", "png"))
    assert status(links, link) == 410


def test_the_oldest_go_where_there_is_no_room() -> None:
    links = Links(30, 60.0)
    kept = [taken_apart(links.put(b"x" * 10, "png")) for _ in range(5)]
    assert [status(links, link) for link in kept] == [410, 410, 200, 200, 200]
    large = taken_apart(links.put(b"x" * 25, "png"))
    assert [status(links, link) for link in (*kept, large)] == [410] * 5 + [200]


def test_a_picture_that_is_larger_than_all_the_room_is_not_kept_and_the_next_one_is() -> None:
    links = Links(10, 60.0)
    large = taken_apart(links.put(b"x" * 11, "png"))
    small = taken_apart(links.put(b"x" * 10, "png"))
    assert (status(links, large), status(links, small)) == (410, 200)


def test_what_is_kept_stays_within_its_bound_of_memory() -> None:
    tracemalloc.start()
    links = Links(100_000, 60.0)
    for _ in range(2_000):
        links.put(bytes(1_000), "png")
    here = [tracemalloc.Filter(True, module) for module in (__file__, links_module.__file__)]  # other threads go on
    grown = sum(each.size for each in tracemalloc.take_snapshot().filter_traces(here).statistics("filename"))
    tracemalloc.stop()
    assert 100_000 <= grown < 250_000
