"""Textual inversion embeddings of a LoRA catalogue become words of the tokenisers, as diffusers loads them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import InvalidRequestError
from ..common.filesystem import as_text
from ..common.sentences import first_sentence, shown
from ..lora.files.modules import TEXT_ENCODER, TEXT_ENCODER_2
from ..lora.files.textual_inversion import holds_textual_inversion, read_vectors
from .token_encoding import normalised

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import CLIPTokenizer

    from ..lora.loading.catalogue import Catalogue

logger = logging.getLogger(__name__)

TOKENIZERS = {TEXT_ENCODER: "tokenizer", TEXT_ENCODER_2: "tokenizer_2"}
FURTHER = re.compile(r"_\d+$")
"""What diffusers calls the second and further vectors of an embedding by, after its name."""


def embedding_files(catalogue: Catalogue) -> dict[str, Path]:
    """The catalogue's local files that are embeddings, by name, in the order of names."""
    entries = [catalogue.entry(name) for name in catalogue.names()]
    files = {entry.name: Path(entry.location) for entry in entries if not entry.is_remote}
    return {name: path for name, path in files.items() if holds_textual_inversion(path)}


def load_embeddings(pipeline: DiffusionPipeline, files: dict[str, Path]) -> None:
    """Adds embeddings to a pipeline's tokenisers and text encoders; one that does not fit is logged and left out."""
    if not files:
        return
    given = {part: getattr(pipeline, part, None) for part in TOKENIZERS}
    encoders = {part: encoder for part, encoder in given.items() if encoder is not None}
    tokenizers = {part: getattr(pipeline, TOKENIZERS[part]) for part in encoders}
    words = _Words(list(tokenizers.values()))
    for name, path in files.items():
        try:
            widths = {part: encoder.get_input_embeddings().weight.shape[1] for part, encoder in encoders.items()}
            vectors = read_vectors(path, widths)
            token = words.token(name)
            for part, encoder in encoders.items():
                pipeline.load_textual_inversion(
                    vectors[part], token=token, tokenizer=tokenizers[part], text_encoder=encoder
                )
            words.add(token, name)
        except Exception as error:  # noqa: BLE001  one file among many: the text encoder serves the rest
            logger.warning("the embedding %s is left out: %s", as_text(str(path)), as_text(first_sentence(error)))


class _Words:
    """The tokens that embeddings have taken, and those they cannot have."""

    def __init__(self, tokenizers: list[CLIPTokenizer]) -> None:
        self._tokenizer = tokenizers[0]
        self._vocabulary: set[str] = set()
        for tokenizer in tokenizers:
            self._vocabulary.update(tokenizer.get_vocab())
            self._vocabulary.update(normalised(token, tokenizer) for token in tokenizer.added_tokens_encoder)
        self._names: dict[str, str] = {}
        self._numbered: dict[str, str] = {}

    def token(self, name: str) -> str:
        """What the tokenisers are to find, of an embedding's name.

        Raises:
            InvalidRequestError: If they would find something else by it, or it by another embedding's name.
        """
        token = normalised(name, self._tokenizer)
        if token in self._vocabulary:
            raise InvalidRequestError(f"its name {shown(name)} is the token {shown(token)} already; wanted: another")
        other = self._names.get(token) or self._names.get(FURTHER.sub("", token)) or self._numbered.get(token)
        if other is not None:
            raise InvalidRequestError(
                f"its name {shown(name)} is too like the embedding {shown(other)}; "
                "wanted: names that differ in more than case and a number after _"
            )
        return token

    def add(self, token: str, name: str) -> None:
        """Takes note of one that is loaded."""
        self._names[token] = name
        self._numbered[FURTHER.sub("", token)] = name
