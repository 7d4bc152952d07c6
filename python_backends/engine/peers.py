"""Latent parallelism: idle shards of the pipeline evaluate rows for one that has more than one."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..backend.metrics import TRANSFERRED, Counter
from ..backend.responses import as_request_error
from ..backend.tensors import output_tensor, response_tensor
from ..common.errors import ModelDownError, from_report
from .evaluator import Evaluated
from .messages import Borrow, Evaluate, Evaluation, Lent
from .shards import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .unet_calls import UNetCall

AGAIN_AFTER_S = 0.5
"""A shard that did not lend itself is not asked again for so long."""

ANSWER_WITHIN_S = 0.01
"""An idle shard answers within so long; a step does not wait for another any longer."""


@dataclass
class Peer:
    """Another shard.

    Attributes:
        name: Its model.
        lent_at: Since when it evaluates for this one, in seconds of the monotonic clock; None if it does not.
        asked: The question whether it would, on its way.
        ask_at: When to ask next, in seconds of the monotonic clock.
    """

    name: str
    lent_at: float | None = None
    asked: Future[bool] | None = None
    ask_at: float = 0.0


class Peers:
    """The other shards of a pipeline, as one of them sees them. They lend themselves while they have nothing to do."""

    def __init__(self, home: str, names: Sequence[str]) -> None:
        """Asks nobody yet.

        Args:
            home: The shard whose rows they are.
            names: Of the others.
        """
        self._home = home
        self._peers = [Peer(name) for name in names]
        self._bytes = Counter(*TRANSFERRED)
        self._threads = ThreadPoolExecutor(max(1, 2 * len(self._peers)), "peer-call")

    def __len__(self) -> int:
        """How many there are."""
        return len(self._peers)

    def lent(self, most: int) -> list[Peer]:
        """Up to so many that evaluate for this shard now; asks others, and waits a moment for what they say."""
        if most <= 0 or not self._peers:
            return []
        now = time.monotonic()
        lacking = most - sum(peer.lent_at is not None or peer.asked is not None for peer in self._peers)
        idle = [each for each in self._peers if each.lent_at is None and each.asked is None and now >= each.ask_at]
        for peer in idle[: max(0, lacking)]:
            peer.asked = self._threads.submit(self._borrow, peer.name)
        wait([each.asked for each in idle if each.asked is not None], ANSWER_WITHIN_S)
        for peer in self._peers:
            if peer.asked is not None and peer.asked.done():
                peer.lent_at = now if peer.asked.result() else None
                peer.asked, peer.ask_at = None, now + AGAIN_AFTER_S
        lent = [(peer.lent_at, number) for number, peer in enumerate(self._peers) if peer.lent_at is not None]
        return [self._peers[number] for _, number in sorted(lent)[:most]]

    def submit(self, peer: Peer, call: UNetCall) -> Future[Evaluated | None]:
        """Starts an evaluation; None comes of it if the peer has runs of its own by now, or is down."""
        tensors = {name: tensor.cpu() for name, tensor in call.tensors.items()}
        return self._threads.submit(self._evaluate, peer, replace(call, tensors=tensors))

    def _borrow(self, name: str) -> bool:
        try:
            return ask(name, Borrow(self._home), Lent)[0].lent
        except Exception as error:  # noqa: BLE001  this shard does without
            self._give_up(name, error)
            return False

    def _evaluate(self, peer: Peer, call: UNetCall) -> Evaluated | None:
        try:
            evaluated = self._asked(peer.name, call)
        except Exception as error:  # noqa: BLE001  this shard evaluates the rows itself
            self._give_up(peer.name, error)
            evaluated = None
        if evaluated is None:
            peer.lent_at = None
        return evaluated

    def _asked(self, name: str, call: UNetCall) -> Evaluated | None:
        inputs = [output_tensor(name, tensor) for name, tensor in call.tensors.items()]
        message = Evaluate(self._home, call.loras, call.ahead, call.controls, call.pixels)
        answer, response = ask(name, message, Evaluation, inputs, ["NOISE_PRED"])
        if answer.refused:
            return None
        prediction = response_tensor(response, "NOISE_PRED")
        self._bytes.add(sum(tensor.nbytes for tensor in call.tensors.values()), model=name, direction="to")
        self._bytes.add(prediction.nbytes, model=name, direction="from")
        failures = {row: from_report(dict(each)) for row, each in answer.failures.items()}
        return Evaluated(prediction, answer.patch_ms, answer.beside, failures, answer.stale)

    @staticmethod
    def _give_up(name: str, error: Exception) -> None:
        """Logs what is more than that it is down."""
        if not isinstance(error, ModelDownError):
            as_request_error(error, name)
