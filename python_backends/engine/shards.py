"""The UNet shards as a denoiser sees them: where runs go, how far they are, who is down. Needs no torch."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils

from ..backend.model_calls import ask_model, call_model
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

    from .messages import Message, Work

T = TypeVar("T")


class Shards:
    """Asks shards by name; one that is down is loaded again meanwhile, and asked no more until it is there.

    Every question raises ModelDownError where the shard is down.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._revivals: dict[str, Future[Any]] = {}
        self._threads = ThreadPoolExecutor(len(self.names), "shard-revival")

    @property
    def up(self) -> list[str]:
        """Those that answer, as far as is known."""
        return [name for name in self.names if name not in self._revivals or self._revivals[name].done()]

    def quotes(self, work: Work) -> list[tuple[Quoted, str]]:
        """What each shard that is up says to such a run, and its name.

        Raises:
            ModelDownError: If none is.
        """
        quotes: list[tuple[Quoted, str]] = []
        for name in self.up:
            with suppress(ModelDownError):
                quotes.append((self._ask(name, Quote(work), Quoted)[0], name))
        if not quotes:
            raise self._why()
        return quotes

    def claim(self, name: str, message: Claim) -> Claimed:
        """Claims a place in a shard's line."""
        return self._ask(name, message, Claimed)[0]

    def submit(self, name: str, message: Submit) -> Submitted:
        """Has a shard take up a run."""
        return self._ask(name, message, Submitted)[0]

    def cancel(self, name: str, runs: Iterable[str]) -> None:
        """Has a shard forget runs."""
        self._ask(name, Cancel(tuple(runs)), Submitted)

    def poll(self, name: str, runs: Iterable[str]) -> tuple[Polled, dict[str, np.ndarray]]:
        """How far a shard's runs are; and the final latents, float32, of those that are done."""
        polled, response = self._ask(name, Poll(tuple(runs)), Polled, "LATENTS")
        tensor = pb_utils.get_output_tensor_by_name(response, "LATENTS")
        flat = np.empty(0, np.float32) if tensor is None else tensor.as_numpy()
        latents, start = {}, 0
        for run, state in polled.runs.items():
            if state is not None and state.shape is not None:
                size = int(np.prod(state.shape))
                latents[run] = flat[start : start + size].reshape(state.shape).copy()
                start += size
        return polled, latents

    def _ask(self, name: str, message: Message, kind: type[T], *outputs: str) -> tuple[T, Any]:
        try:
            return ask(name, message, kind, outputs=outputs)
        except ModelDownError:
            if name in self.up:
                self._revivals[name] = self._threads.submit(revive, name)
            raise

    def _why(self) -> ModelDownError:
        """What became of the first that could not be loaded again; else that all are on their way."""
        failures = [each.exception() for each in self._revivals.values() if each.done()]
        known = next((failure for failure in failures if isinstance(failure, ModelDownError)), None)
        return known or ModelDownError(f"{', '.join(self.names)}: down, and being loaded again")


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


def revive(name: str) -> None:
    """Has a shard that is down loaded again; errors as `ask`."""
    call_model(name, [text_tensor("MESSAGE", to_json(Poll(())))], ["ANSWER"])
