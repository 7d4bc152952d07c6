"""What other libraries say while they load a checkpoint."""

from __future__ import annotations


def silence_libraries() -> None:
    """Keeps diffusers' and transformers' progress bars and advice out of logs and terminals; errors stay."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
