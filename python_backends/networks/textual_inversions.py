"""Textual inversion embeddings of a LoRA catalogue become words of the tokenisers, as diffusers loads them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import InvalidRequestError
from ..common.filesystem import as_text
from ..common.sentences import first_sentence
from ..lora.files.modules import TEXT_ENCODER, TEXT_ENCODER_2
from ..lora.files.textual_inversion import holds_textual_inversion, read_vectors

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ..lora.loading.catalogue import Catalogue

logger = logging.getLogger(__name__)


def embedding_files(catalogue: Catalogue) -> dict[str, Path]:
    """The catalogue's local files that are embeddings, by name."""
    entries = [catalogue.entry(name) for name in catalogue.names()]
    files = {entry.name: Path(entry.location) for entry in entries if not entry.is_remote}
    return {name: path for name, path in files.items() if holds_textual_inversion(path)}


def load_embeddings(pipeline: DiffusionPipeline, files: dict[str, Path]) -> None:
    """Adds embeddings to a pipeline's tokenisers and text encoders; one that does not fit is logged and left out."""
    tokenizers = {TEXT_ENCODER: "tokenizer", TEXT_ENCODER_2: "tokenizer_2"}
    given = {name: getattr(pipeline, name, None) for name in tokenizers}
    encoders = {name: encoder for name, encoder in given.items() if encoder is not None}
    for name, path in files.items():
        widths = {part: encoder.get_input_embeddings().weight.shape[1] for part, encoder in encoders.items()}
        try:
            vectors = read_vectors(path, widths)
            words = [getattr(pipeline, tokenizers[part]).get_vocab() for part in encoders]
            if any(name in vocabulary for vocabulary in words):
                raise InvalidRequestError("its name is a token already; wanted: another name")
            for part, encoder in encoders.items():
                pipeline.load_textual_inversion(
                    vectors[part], token=name, tokenizer=getattr(pipeline, tokenizers[part]), text_encoder=encoder
                )
        except (InvalidRequestError, ValueError) as error:
            logger.warning("the embedding %s is left out: %s", as_text(str(path)), as_text(first_sentence(error)))
