"""What other libraries say while they load a checkpoint."""

from __future__ import annotations


def silence_diffusers() -> None:
    """Keeps diffusers' progress bars and advice out of logs and terminals; errors stay."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def silence_libraries() -> None:
    """Those of transformers too, which takes a second to import: not for a process that needs it for nothing else."""
    from transformers.utils import logging

    silence_diffusers()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
