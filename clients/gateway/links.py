"""Pictures that are fetched by URL: kept in memory for an hour, the oldest dropped where there is no room."""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

from .errors import ApiError


@dataclass(frozen=True)
class KeptPicture:
    """One of them, and until when, in seconds since 1970."""

    content: bytes
    media_type: str
    expires: int


class Links:
    """The pictures, and the signatures of their URLs."""

    def __init__(self, kept_bytes: int, kept_seconds: float) -> None:
        """Keeps none yet.

        Args:
            kept_bytes: Of all together.
            kept_seconds: Of each.
        """
        self._kept: OrderedDict[str, KeptPicture] = OrderedDict()
        self._size, self._kept_bytes, self._kept_seconds = 0, kept_bytes, kept_seconds
        self._secret = secrets.token_bytes(32)

    def put(self, content: bytes, file_format: str) -> str:
        """Keeps a picture; the part of its URL after `/v1/images/files/`."""
        expires = int(time.time() + self._kept_seconds)
        name = f"{secrets.token_urlsafe(16)}.{file_format}"
        self._kept[name] = KeptPicture(content, f"image/{file_format}", expires)
        self._size += len(content)
        self._drop_old()
        return f"{name}?expires={expires}&signature={self._signature(name, expires)}"

    def get(self, name: str, expires: int, signature: str) -> KeptPicture:
        """A picture.

        Raises:
            ApiError: If the URL is not one that was given out, or its time has passed.
        """
        if not hmac.compare_digest(self._signature(name, expires).encode(), signature.encode("utf-8")):
            raise ApiError(403, "the signature is not this gateway's", code="invalid_signature")
        self._drop_old()
        kept = self._kept.get(name)
        if kept is None or time.time() > expires:
            raise ApiError(410, "the picture is not kept any more", code="expired")
        return kept

    def _drop_old(self) -> None:
        now = time.time()
        while self._kept and (self._size > self._kept_bytes or next(iter(self._kept.values())).expires < now):
            self._size -= len(self._kept.popitem(last=False)[1].content)

    def _signature(self, name: str, expires: int) -> str:
        return hmac.new(self._secret, f"{name}?{expires}".encode(), hashlib.sha256).hexdigest()
