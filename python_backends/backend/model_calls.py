"""Other models of this server, called over BLS. Needs no torch.

Triton 2.51 never restarts a Python backend's process that died: its model stays READY and fails every request, until
the watcher of `swiftdiffusion serve` has loaded it again; and a call that meets a dead process can end the server. So
callers look before they call.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import triton_python_backend_utils as pb_utils

from ..common.errors import ModelDownError, ModelFailedError, NoRoomError
from ..common.pulse import is_up
from ..request.encoding import Encoding, PictureEncoding
from .dead_models import FULL_MEMORY, is_dead, is_full
from .settings import response_texts, text_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..request.completed import CompletedRequest

T = TypeVar("T")
logger = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""Longest that who needs a model that is down waits for it."""

LOOK_EVERY_S = 0.05

_trace: ContextVar[Any] = ContextVar("trace", default=None)


def ask_model(name: str, inputs: Sequence[Any], outputs: Sequence[str]) -> Any:
    """The response of a model.

    Args:
        name: The model.
        inputs: `pb_utils.Tensor`s.
        outputs: Names of the wanted outputs.

    Raises:
        ModelDownError: If it is down.
        NoRoomError: If there is no room for its tensors.
        ModelFailedError: If it lives and answers with an error.
    """
    if not is_up(name):
        raise down(name)
    traced = {} if (trace := _trace.get()) is None else {"trace": trace}
    request = pb_utils.InferenceRequest(
        model_name=name, requested_output_names=list(outputs), inputs=list(inputs), **traced
    )
    response = request.exec()
    if response.has_error():
        message = response.error().message()
        if is_full(message):
            raise NoRoomError(FULL_MEMORY)
        if not is_dead(message):
            raise ModelFailedError(f"{name} failed: {message}")
        logger.warning("%s is down: %s", name, message)
        raise down(name)
    return response


@contextmanager
def traced(request: Any) -> Iterator[None]:
    """Calls of this thread within are spans of a request that its model has in hand; None for no request's."""
    token = _trace.set(None if request is None else request.trace())
    try:
        yield
    finally:
        _trace.reset(token)


def patiently(ask: Callable[[], T]) -> T:
    """What comes of asking; while a model that it takes is down, it waits and asks again.

    Raises:
        ModelDownError: If one stays down.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except ModelDownError:
            if time.monotonic() > until:
                raise
            time.sleep(LOOK_EVERY_S)


def down(*names: str) -> ModelDownError:
    """What the client of a request is told that needs such models."""
    verb = "is" if len(names) == 1 else "are"
    return ModelDownError(f"{', '.join(names)} {verb} down and being loaded again; retry in a few seconds")


def load_loras(store: str, request: CompletedRequest) -> str:
    """Starts loading a request's LoRAs: the TICKETS of the model `lora_store`; errors as `ask_model`."""
    response = ask_model(store, [text_tensor("REQUEST", request.to_json())], ["TICKETS"])
    return response_texts(response, "TICKETS")[0]


def encode_prompts(text_encoder: str, request: CompletedRequest, tickets: str) -> Encoding:
    """Has a request's prompts encoded, with those of its LoRAs that are at hand; errors as `ask_model`."""
    inputs = [text_tensor("REQUEST", request.to_json()), text_tensor("TICKETS", tickets)]
    response = ask_model(text_encoder, inputs, ["ENCODING"])
    return Encoding.from_json(response_texts(response, "ENCODING")[0])


def encode_picture(vae_encoder: str, request: CompletedRequest) -> PictureEncoding:
    """Has a request's picture encoded; errors as `ask_model`."""
    response = ask_model(vae_encoder, [text_tensor("REQUEST", request.to_json())], ["LATENT_KEYS"])
    return PictureEncoding.from_json(response_texts(response, "LATENT_KEYS")[0])
