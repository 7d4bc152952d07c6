"""Requests that a page elsewhere has a browser send."""

from __future__ import annotations

import pytest

from swiftdiffusion.clients.gateway.errors import ApiError
from swiftdiffusion.clients.gateway.origins import Origins

PUBLIC = "https://pictures.example"


def check(host: str, origin: str | None = None, *, has_keys: bool = False) -> None:
    headers = {b"host": host} | ({} if origin is None else {b"origin": origin})
    Origins(("https://studio.example",), PUBLIC, has_keys).check(headers)


@pytest.mark.parametrize("has_keys", [False, True])
@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8080", None),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("localhost:8080", "http://localhost:8080"),
        ("gateway:8080", None),
        ("pictures.example", "https://pictures.example"),
        ("10.0.0.7:8080", "https://pictures.example"),
        ("10.0.0.7:8080", "https://studio.example"),
    ],
)
def test_what_is_no_page_elsewhere_is_let_in(host: str, origin: str | None, has_keys: bool) -> None:
    check(host, origin, has_keys=has_keys)


@pytest.mark.parametrize("has_keys", [False, True])
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "http://127.0.0.1:9", "https://studio.example.evil"]
)
def test_pages_elsewhere_are_refused(origin: str, has_keys: bool) -> None:
    with pytest.raises(ApiError, match="allowed: --origin") as caught:
        check("127.0.0.1:8080", origin, has_keys=has_keys)
    assert (caught.value.status, caught.value.code) == (403, "foreign_origin")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "a.b"])
def test_a_name_that_anybody_could_point_here_needs_keys(host: str) -> None:
    with pytest.raises(ApiError, match="allowed without keys: --public-url") as caught:
        check(host, f"http://{host}")
    assert (caught.value.status, caught.value.code) == (403, "foreign_host")
    check(host, has_keys=True)
