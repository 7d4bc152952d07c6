"""The demo's tokenizer is a CLIP tokenizer that keeps the words of its world whole."""

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from swiftdiffusion.export.demo.captions import write_caption
from swiftdiffusion.export.demo.scenes import sample_scene
from swiftdiffusion.export.demo.tokenizer import byte_pair_merges, vocabulary_words, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_words_are_single_tokens(tokenizer: CLIPTokenizer) -> None:
    for word in vocabulary_words():
        assert tokenizer.tokenize(word) == [f"{word}</w>"]


def test_captions_fit_and_come_back(tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = write_caption(sample_scene(rng), rng).text
        ids = tokenizer(text, padding="max_length", max_length=77).input_ids
        assert len(ids) == 77
        assert ids.index(tokenizer.eos_token_id) < 35
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",") == text


def test_special_tokens_are_clips(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("").input_ids
    assert ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.model_max_length == 77


def test_unknown_words_are_spelled(tokenizer: CLIPTokenizer) -> None:
    assert "".join(tokenizer.tokenize("xylophone Größe 7!")).replace("</w>", "") == "xylophonegrÃ¶ÃŁe7!"


def test_writing_is_reproducible(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_tokenizer(tmp_path / name)
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_merges_build_each_word() -> None:
    assert byte_pair_merges(["ab", "abc"]) == [("b", "c</w>"), ("a", "bc</w>"), ("a", "b</w>")]
