"""Whether the models of a starting server were loaded, and why not."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from .errors import ModelFailure, ModelLoadError
from .log import error_messages, loaded_models
from .repository_api import RepositoryApi, RepositoryApiError, ServerUnreachableError


def repository_index(api: RepositoryApi, read_log: Callable[[], str]) -> list[dict[str, Any]] | None:
    """State of every model as the server tells it: dictionaries of name, state and reason.

    Args:
        api: the server's.
        read_log: reads its log, which is asked instead if the model control API is restricted.

    Returns:
        None while the server is not listening yet.
    """
    try:
        return api.index()
    except RepositoryApiError:
        models = loaded_models(read_log())
        return [{"name": model, "state": state} for model, state in models.items()]
    except ServerUnreachableError:
        return None


def check_loaded(models: Sequence[str], index: Sequence[dict[str, Any]], log: str) -> None:
    """Does nothing if every model is ready.

    Args:
        models: names of the models that should be.
        index: what `repository_index` gave.
        log: holds the reasons that the index leaves out.

    Raises:
        ModelLoadError: some are not.
    """
    reasons = {entry["name"]: entry.get("reason", "") for entry in index if entry.get("state") != "READY"}
    reasons |= dict.fromkeys(set(models) - {entry["name"] for entry in index}, "")
    if not reasons:
        return
    messages = error_messages(log)
    reasons = {name: reason or _reason(name, messages) for name, reason in reasons.items()}
    dependents = {name for name, reason in reasons.items() if f"ensemble '{name}' depends on" in reason}
    if len(dependents) == len(reasons):
        dependents = set()
    failures = tuple(ModelFailure(n, cleaned(r)) for n, r in sorted(reasons.items()) if n not in dependents)
    raise ModelLoadError(failures, sorted(dependents))


def _reason(model: str, messages: list[str]) -> str:
    """Why a model failed, from the log's errors: its own failure, else the last message that names it."""
    name = re.escape(model)
    own = [
        match[1] for m in messages if (match := re.match(rf"failed to load '{name}' version \d+: (.+)", m, re.DOTALL))
    ]
    named = [message for message in messages if re.search(rf"(?<![\w.-]){name}(?![\w-])", message)]
    return (own or named or ["the server gives no reason; see its log"])[-1]


def cleaned(reason: str) -> str:
    """The error alone, on one line: without Triton's words before it and the places of the code, which its log has."""
    reason = reason.partition("\nAt:\n")[0]
    reason = re.sub(r"^load failed for model '[^']+': ", "", reason)
    reason = re.sub(r"^(version \d+ is at UNAVAILABLE state: )?(Internal: |Invalid argument: )?", "", reason)
    return " ".join(reason.strip(" ;\n").split())
