"""A server's model repository API, over HTTP: what is loaded, and loading it again."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from .errors import LauncherError

ANSWER_S = 5.0
"""For questions; loading takes as long as it takes."""


class ServerUnreachableError(LauncherError):
    """Nobody answers at the URL, or not in time."""


class RepositoryApiError(LauncherError):
    """The server answers with an error; the message is its own sentence."""


class RepositoryApi:
    """One server's."""

    def __init__(self, http_url: str, headers: Mapping[str, str] | None = None) -> None:
        """Asks nothing yet.

        Args:
            http_url: of the HTTP API.
            headers: sent with every question, as servers want them whose API is restricted.
        """
        self.http_url = http_url
        self._headers = dict(headers or {})
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def index(self) -> list[dict[str, Any]]:
        """State of every model as the server tells it: dictionaries of name, state and reason."""
        return self._ask("/v2/repository/index", {})

    def config(self, model: str) -> dict[str, Any]:
        """The configuration of a model that is loaded, completed by the server."""
        return self._ask(f"/v2/models/{quote(model)}/config")

    def is_ready(self) -> bool:
        """Whether the server says so of itself and all its models."""
        try:
            self._ask("/v2/health/ready")
        except RepositoryApiError:
            return False
        return True

    def load(self, model: str, timeout_s: float) -> None:
        """Loads a model that is not loaded, and those that are composed of it; returns when they are ready."""
        self._ask(f"/v2/repository/models/{quote(model)}/load", {}, timeout_s)

    def replace(self, model: str, timeout_s: float) -> None:
        """Loads a model anew that the server takes for loaded; it has no gap, nor have those composed of it.

        The server ignores the loading of such a model unless its configuration differs: a parameter says when.
        """
        config = self.config(model)
        config.setdefault("parameters", {})["reloaded_at"] = {"string_value": str(time.time())}
        body = {"parameters": {"config": json.dumps(config)}}
        self._ask(f"/v2/repository/models/{quote(model)}/load", body, timeout_s)

    def _ask(self, path: str, body: dict[str, Any] | None = None, timeout_s: float = ANSWER_S) -> Any:
        """The answer's JSON; a POST if there is a body.

        Raises:
            ServerUnreachableError: nobody answers.
            RepositoryApiError: with an error.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.http_url + path, data=data, headers=self._headers)
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise RepositoryApiError(_sentence(error.read()) or f"HTTP {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ServerUnreachableError(f"no server answers at {self.http_url} ({reason})") from error
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise RepositoryApiError(f"{self.http_url + path} does not answer in JSON") from error


def _sentence(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace").strip()
