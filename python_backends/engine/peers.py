"""Latent parallelism: idle shards of the pipeline evaluate rows for one that has more than one."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..backend.metrics import TRANSFERRED, Counter
from ..backend.model_calls import ask_model, call_model
from ..backend.settings import response_texts, text_tensor
from ..backend.tensors import output_tensor, response_tensor
from ..common.errors import RequestError, from_report
from .evaluator import Evaluated
from .messages import Borrow, Evaluate, Evaluation, Lent, Quote, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        lent: Whether it evaluates for this one.
        asked: The question whether it would, on its way.
        ask_at: When to ask next, in seconds of the clock.
    """

    name: str
    lent: bool = False
    asked: Future[bool] | None = None
    ask_at: float = 0.0


class Peers:
    """The other shards of a pipeline, as one of them sees them. They lend themselves while they have nothing to do."""

    def __init__(self, home: str, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        """Asks nobody yet.

        Args:
            home: The shard whose rows they are.
            names: Of the others.
            clock: Seconds.
        """
        self._home, self._clock = home, clock
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
        now = self._clock()
        asked = []
        for peer in self._peers:
            if not peer.lent and peer.asked is None and now >= peer.ask_at:
                peer.asked = self._threads.submit(self._borrow, peer.name)
                asked.append(peer.asked)
        wait(asked, ANSWER_WITHIN_S)
        for peer in self._peers:
            if peer.asked is not None and peer.asked.done():
                peer.lent, peer.asked = peer.asked.result(), None
                peer.ask_at = now + AGAIN_AFTER_S
        return [peer for peer in self._peers if peer.lent][:most]

    def submit(self, peer: Peer, call: UNetCall) -> Future[Evaluated | None]:
        """Starts an evaluation; None comes of it if the peer has runs of its own by now, or is down."""
        tensors = {name: tensor.cpu() for name, tensor in call.tensors.items()}
        return self._threads.submit(self._evaluate, peer, replace(call, tensors=tensors))

    def _borrow(self, name: str) -> bool:
        try:
            (answer,) = response_texts(ask_model(name, [_message(Borrow(self._home))], ["ANSWER"]), "ANSWER")
        except RequestError:
            self._revive(name)
            return False
        return Lent(**json.loads(answer)).lent

    def _evaluate(self, peer: Peer, call: UNetCall) -> Evaluated | None:
        inputs = [output_tensor(name, tensor) for name, tensor in call.tensors.items()]
        message = Evaluate(self._home, call.loras, call.ahead, call.controls)
        try:
            response = ask_model(peer.name, [_message(message), *inputs], ["ANSWER", "NOISE_PRED"])
        except RequestError:
            peer.lent = False
            self._threads.submit(self._revive, peer.name)
            return None
        answer = Evaluation(**json.loads(response_texts(response, "ANSWER")[0]))
        if answer.refused:
            peer.lent = False
            return None
        prediction = response_tensor(response, "NOISE_PRED")
        self._bytes.add(sum(tensor.nbytes for tensor in call.tensors.values()), model=peer.name, direction="to")
        self._bytes.add(prediction.nbytes, model=peer.name, direction="from")
        failures = {row: from_report(dict(each)) for row, each in enumerate(answer.failures) if each is not None}
        return Evaluated(prediction, answer.patch_ms, answer.beside, failures, answer.stale)

    @staticmethod
    def _revive(name: str) -> None:
        """Has a shard that is down loaded again."""
        try:
            call_model(name, [_message(Quote(0, 0, 0))], ["ANSWER"])
        except RequestError:
            return  # it stays down; this shard does without


def _message(message: object) -> object:
    return text_tensor("MESSAGE", to_json(message))
