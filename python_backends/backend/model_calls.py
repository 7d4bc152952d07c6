"""Other models of this server, called over BLS and reloaded when their process has died. Needs no torch."""

from __future__ import annotations

import fcntl
import time
from typing import TYPE_CHECKING, Any, TextIO

import triton_python_backend_utils as pb_utils

from ..common.errors import ModelDownError, ModelFailedError
from ..common.runtime_directory import runtime_directory
from ..request.encoding import Encoding
from .dead_models import RETRY_AFTER_S, is_dead
from .reloadable import reloading
from .settings import response_texts, text_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..request.completed import CompletedRequest


def call_model(name: str, inputs: Sequence[Any], outputs: Sequence[str]) -> Any:
    """The response of a model; if its process is dead, it is reloaded once and asked again.

    Triton 2.51 never restarts a Python backend's process that died: the model stays READY and fails every request,
    until it is unloaded and loaded again. That works with explicit model control.

    Args:
        name: The model.
        inputs: `pb_utils.Tensor`s.
        outputs: Names of the wanted outputs.

    Raises:
        ModelDownError: If it is dead and stays so.
        ModelFailedError: If it lives and answers with an error.
    """
    response = _execute(name, inputs, outputs)
    if response.has_error() and is_dead(response.error().message()):
        response = _revive(name, inputs, outputs)
    return _checked(name, response)


def ask_model(name: str, inputs: Sequence[Any], outputs: Sequence[str]) -> Any:
    """As `call_model`, for callers that do without a dead model."""
    return _checked(name, _execute(name, inputs, outputs))


def _checked(name: str, response: Any) -> Any:
    if response.has_error():
        error = ModelDownError if is_dead(response.error().message()) else ModelFailedError
        raise error(f"{name} failed: {response.error().message()}")
    return response


def load_loras(store: str, request: CompletedRequest) -> str:
    """Starts loading a request's LoRAs: the TICKETS of the model `lora_store`; errors as `call_model`."""
    response = call_model(store, [text_tensor("REQUEST", request.to_json())], ["TICKETS"])
    return response_texts(response, "TICKETS")[0]


def encode_prompts(text_encoder: str, request: CompletedRequest, tickets: str) -> Encoding:
    """Has a request's prompts encoded, with those of its LoRAs that are at hand; errors as `call_model`."""
    inputs = [text_tensor("REQUEST", request.to_json()), text_tensor("TICKETS", tickets)]
    response = call_model(text_encoder, inputs, ["ENCODING"])
    return Encoding.from_json(response_texts(response, "ENCODING")[0])


def _revive(name: str, inputs: Sequence[Any], outputs: Sequence[str]) -> Any:
    """Asks again; reloads the model if it is dead still. One process at a time: the next finds it alive."""
    with (runtime_directory() / f"{name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        last_failure = float(lock.read() or -RETRY_AFTER_S)
        if time.monotonic() - last_failure < RETRY_AFTER_S:
            raise ModelDownError(f"{name} is down and did not load again just now")
        response = _execute(name, inputs, outputs)
        if response.has_error() and is_dead(response.error().message()):
            pb_utils.Logger.log_warn(f"{name} is down and is reloaded: {response.error().message()}")
            try:
                with reloading(name):
                    pb_utils.unload_model(name)
                    pb_utils.load_model(name)
            except pb_utils.TritonModelException as error:
                _note_failure(lock)
                raise ModelDownError(f"{name} is down and does not load again: {error}") from error
            response = _execute(name, inputs, outputs)
            if response.has_error() and is_dead(response.error().message()):
                _note_failure(lock)
        return response


def _note_failure(lock: TextIO) -> None:
    """For the callers that wait for the lock."""
    lock.truncate(0)
    lock.write(str(time.monotonic()))


def _execute(name: str, inputs: Sequence[Any], outputs: Sequence[str]) -> Any:
    return pb_utils.InferenceRequest(model_name=name, requested_output_names=list(outputs), inputs=list(inputs)).exec()
