"""Triton's administration, closed to who has no key: what changes a server, or tells of its use."""

import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from .errors import AdminKeyError

APIS = ("model-repository", "shared-memory", "trace", "logging", "statistics")
"""Closed on both protocols, by Triton's names. Health, metadata, model configurations and inference stay open."""

HEADER = "admin-key"
"""Of HTTP; over gRPC the metadata key is `triton-grpc-protocol-admin-key`."""

KEY_FILE = "admin-key"
"""Its name in a server's private directory."""

_OPTIONS = ("--http-restricted-api", "--grpc-restricted-protocol")
_ADDRESSES = ("--http-address", "--grpc-address")
_DANGEROUS = ("model-repository", "shared-memory")
_KEY = re.compile(r"[A-Za-z0-9_-]{16,256}")
_WANTED = "16 to 256 letters, digits, - and _ of ASCII"


@dataclass(frozen=True)
class AdminKey:
    """What opens the administration of one server."""

    value: str = field(repr=False)

    @classmethod
    def random(cls) -> "AdminKey":
        """One that nobody guesses."""
        return cls(secrets.token_urlsafe(32))

    @classmethod
    def read(cls, path: Path) -> "AdminKey":
        """The key in a file, without the blanks around it.

        Raises:
            AdminKeyError: others than this user may read or change the file, or it holds no key.
        """
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                text = file.read(1024).decode("utf-8", "replace").strip()
        except OSError as error:
            raise AdminKeyError(f"the admin key's file {path} cannot be read: {error.strerror}") from error
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise AdminKeyError(f"the admin key's file {path} is not this user's alone: `chmod 600` it, as its owner")
        if not _KEY.fullmatch(text):
            raise AdminKeyError(f"the admin key's file {path} holds no key; wanted: {_WANTED}")
        return cls(text)

    @property
    def headers(self) -> dict[str, str]:
        """What HTTP requests to closed APIs have to carry."""
        return {HEADER: self.value}

    def arguments(self) -> list[str]:
        """Options of tritonserver, which takes the key from its command line alone."""
        return [f"{option}={','.join(APIS)}:{HEADER}={self.value}" for option in _OPTIONS]

    def write(self, path: Path) -> None:
        """Into a new file that only this user can read."""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self.value + "\n")


def choose_admin_key(
    host: str, restrict: bool | None, key_file: Path | None, extra_arguments: Sequence[str] = ()
) -> AdminKey | None:
    """The key of a server that is restricted, None for one that is not.

    Args:
        host: address to listen on.
        restrict: None restricts where a key is given, and on every address but loopback.
        key_file: holds the key; None makes one.
        extra_arguments: of tritonserver; with restrictions of their own they replace the default.

    Raises:
        AdminKeyError: the options contradict each other or leave open what loads code, or the file is unfit.
    """
    own = {option: _values(extra_arguments, option) for option in _OPTIONS}
    given = next((option for option, values in own.items() if values), None)
    if given and (restrict or key_file is not None):
        raise AdminKeyError(f"{given} and --restrict close the same APIs: give one of them")
    addresses = [host, *(address for option in _ADDRESSES for address in _values(extra_arguments, option))]
    is_exposed = not all(map(is_loopback, addresses))
    if given and is_exposed and restrict is None:
        for option, values in own.items():
            closed = {api for value in values for api in value.partition(":")[0].split(",")}
            if missing := [api for api in _DANGEROUS if api not in closed]:
                raise AdminKeyError(
                    f"{option} leaves {' and '.join(missing)} open to the network, by which code can be loaded; "
                    "wanted: one that closes them too, --restrict instead, or --no-restrict"
                )
    if restrict is None:
        restrict = key_file is not None or (is_exposed and not given)
    if not restrict:
        if key_file is not None:
            raise AdminKeyError("--admin-key-file and --no-restrict contradict each other: give one of them")
        return None
    return AdminKey.random() if key_file is None else AdminKey.read(key_file)


def _values(arguments: Sequence[str], option: str) -> list[str]:
    """What an option is given, as `--option=value` or `--option value`."""
    joined = [each.partition("=")[2] for each in arguments if each.startswith(f"{option}=")]
    return joined + [after for each, after in pairwise(arguments) if each == option]


def admin_headers(arguments: Sequence[str]) -> dict[str, str]:
    """What a running tritonserver's command line says that HTTP requests for model control have to carry."""
    for argument in arguments:
        option, _, restriction = argument.partition("=")
        apis, _, header = restriction.partition(":")
        if option == _OPTIONS[0] and "model-repository" in apis.split(","):
            name, _, value = header.partition("=")
            return {name: value}
    return {}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; of names only `localhost`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
