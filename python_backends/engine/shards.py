"""The UNet shards as a denoiser sees them: where runs go, and how far they are. Needs no torch."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils

from ..backend.model_calls import ask_model, down
from ..backend.settings import response_texts, text_tensor
from ..common.errors import ModelDownError
from .messages import (
    Cancel,
    Claim,
    Claimed,
    Poll,
    Polled,
    Quote,
    Quoted,
    Submit,
    Submitted,
    answer_from_json,
    to_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .messages import Message
    from .work import Work

T = TypeVar("T")


class Shards:
    """Asks shards by name; every question raises ModelDownError where the shard is down."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def quotes(self, work: Work) -> list[tuple[Quoted, str]]:
        """What each shard says to such a run that is up, and its name.

        Raises:
            ModelDownError: If none is.
        """
        quotes: list[tuple[Quoted, str]] = []
        for name in self.names:
            with suppress(ModelDownError):
                quotes.append((ask(name, Quote(work), Quoted)[0], name))
        if not quotes:
            raise down(*self.names)
        return quotes

    def claim(self, name: str, message: Claim) -> Claimed:
        """Claims a place in a shard's line."""
        return ask(name, message, Claimed)[0]

    def submit(self, name: str, message: Submit) -> Submitted:
        """Has a shard take up a run."""
        return ask(name, message, Submitted)[0]

    def cancel(self, name: str, runs: Iterable[str]) -> None:
        """Has a shard forget runs."""
        ask(name, Cancel(tuple(runs)), Submitted)

    def poll(self, name: str, runs: Iterable[str]) -> tuple[Polled, dict[str, np.ndarray]]:
        """How far a shard's runs are; and the latents, float32, of those whose states have a shape."""
        polled, response = ask(name, Poll(tuple(runs)), Polled, outputs=["LATENTS"])
        tensor = pb_utils.get_output_tensor_by_name(response, "LATENTS")
        flat = np.empty(0, np.float32) if tensor is None else tensor.as_numpy()
        latents, start = {}, 0
        for run, state in polled.runs.items():
            if state is not None and state.shape is not None:
                size = int(np.prod(state.shape))
                latents[run] = flat[start : start + size].reshape(state.shape).copy()
                start += size
        return polled, latents


def ask(
    name: str, message: Message, kind: type[T], tensors: Iterable[Any] = (), outputs: Iterable[str] = ()
) -> tuple[T, Any]:
    """A shard's answer, of a kind, and the response with the outputs that come beside it.

    Raises:
        ModelDownError: If it is down.
        ModelFailedError: If it answers with an error.
    """
    response = ask_model(name, [text_tensor("MESSAGE", to_json(message)), *tensors], ["ANSWER", *outputs])
    return answer_from_json(kind, response_texts(response, "ANSWER")[0]), response
