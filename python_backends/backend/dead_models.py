"""How Triton's sentences about models are told from each other: who died, what is full. Needs no torch."""

from __future__ import annotations

SIGNS_OF_A_DEAD_PROCESS = ("not healthy", "health mutex", "unknown model", "no available versions", "is not ready")
"""In the errors of a model whose process died, was stopped or was unloaded. A Python exception in a model that lives on
and the refusals of a server that is shutting down have none of them."""


SIGN_OF_FULL_MEMORY = "the shared memory pool size"
FULL_MEMORY = "the server's shared memory (/dev/shm) is full; try again later"


def is_full(message: str) -> bool:
    """Whether an error says that there is no shared memory left for tensors."""
    return SIGN_OF_FULL_MEMORY in message


def is_dead(message: str) -> bool:
    """Whether an error says that its model has to be loaded again."""
    return any(sign in message for sign in SIGNS_OF_A_DEAD_PROCESS)
