"""Pages elsewhere must not use somebody's browser to get at a gateway in that one's reach."""

import ipaddress
from urllib.parse import urlsplit

from .errors import ApiError


class Origins:
    """Whose pages may send requests here, and under which names."""

    def __init__(self, named: tuple[str, ...], public_url: str | None, has_keys: bool) -> None:
        """Looks at nothing yet.

        Args:
            named: Origins of pages elsewhere that may.
            public_url: Where browsers find this gateway, if that is not where it listens.
            has_keys: Whether it asks for keys, which pages elsewhere do not have.
        """
        self._named, self._has_keys = set(named), has_keys
        self._public = urlsplit(public_url).netloc.lower() if public_url else None

    def check(self, headers: dict[bytes, str]) -> None:
        """Nothing, if no page elsewhere is behind a request.

        A name that anybody could have registered, and pointed at this machine, counts as elsewhere where there are no
        keys (DNS rebinding).

        Args:
            headers: The request's, names in lower case.

        Raises:
            ApiError: Otherwise.
        """
        host, origin = headers.get(b"host", "").lower(), headers.get(b"origin")
        if origin is not None and origin not in self._named and urlsplit(origin).netloc not in (host, self._public):
            raise ApiError(
                403, f"a page of {origin[:80]!r} sends this; allowed: --origin of the gateway", code="foreign_origin"
            )
        if not self._has_keys and host != self._public and not _is_local(urlsplit(f"//{host}").hostname or ""):
            raise ApiError(
                403, f"Host is {host[:80]!r}; allowed without keys: --public-url of the gateway", code="foreign_host"
            )


def _is_local(name: str) -> bool:
    """Addresses, and names without a dot: `localhost`, a container's."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name
    return True
