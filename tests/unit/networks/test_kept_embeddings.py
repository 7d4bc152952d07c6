"""Embeddings by key: pairs for the UNet, zeros for an absent one, and what is told when they are gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from processes import other_process
from swiftdiffusion.python_backends.common.errors import EmbeddingsUnavailableError
from swiftdiffusion.python_backends.networks.kept_embeddings import KeptEmbeddings
from swiftdiffusion.python_backends.networks.prompt_encoding import Embedding
from swiftdiffusion.python_backends.shared_memory.host_cache import EvictedError

PUT = """
import torch
from swiftdiffusion.python_backends.networks.kept_embeddings import KeptEmbeddings
from swiftdiffusion.python_backends.networks.prompt_encoding import Embedding
Path(sys.argv[2]).write_text(KeptEmbeddings(Path(sys.argv[1])).put(Embedding(torch.ones(77, 8), torch.ones(4))))
"""


def embedding(seed: int, pooled: bool = True, tokens: int = 77) -> Embedding:
    random = torch.Generator().manual_seed(seed)
    made = torch.randn(tokens, 8, generator=random), torch.randn(4, generator=random)
    return Embedding(made[0], made[1] if pooled else None)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("tokens", [77, 154])
def test_a_pair_is_what_was_put(tmp_path: Path, pooled: bool, tokens: int) -> None:
    kept = KeptEmbeddings(tmp_path / "embeddings")
    negative, prompt = embedding(1, pooled, tokens), embedding(2, pooled, tokens)
    found, found_pooled = kept.pair(kept.put(negative), kept.put(prompt))
    assert torch.equal(found, torch.stack([negative.tokens, prompt.tokens]))
    assert (found_pooled is not None) == pooled
    if found_pooled is not None and negative.pooled is not None and prompt.pooled is not None:
        assert torch.equal(found_pooled, torch.stack([negative.pooled, prompt.pooled]))


@pytest.mark.parametrize("pooled", [True, False])
def test_an_absent_negative_prompt_is_zeros(tmp_path: Path, pooled: bool) -> None:
    kept = KeptEmbeddings(tmp_path / "embeddings")
    prompt = embedding(1, pooled)
    found, found_pooled = kept.pair(None, kept.put(prompt))
    assert torch.equal(found, torch.stack([torch.zeros(77, 8), prompt.tokens]))
    assert found_pooled is None or (not found_pooled[0].any() and found_pooled[1].any())


def test_a_text_is_kept_by_what_it_came_to(tmp_path: Path) -> None:
    kept = KeptEmbeddings(tmp_path / "embeddings")
    same = kept.put(embedding(1))
    assert same == kept.put(embedding(1)) == embedding(1).key
    assert len({same, kept.put(embedding(2)), kept.put(embedding(1, pooled=False))}) == 3
    tokens, _ = kept.pair(same, same)
    assert torch.equal(tokens[0], tokens[1])


def test_whichever_of_a_pair_is_gone_is_told(tmp_path: Path) -> None:
    kept = KeptEmbeddings(tmp_path / "embeddings", max_bytes=5000)
    old, new = kept.put(embedding(1)), kept.put(embedding(2))
    for pair in ((old, new), (new, old), (None, old)):
        with pytest.raises(EvictedError, match=f"{old}.* is no longer in the cache"):
            kept.pair(*pair)
    assert kept.put(embedding(1)) == old
    kept.pair(None, old)


def test_one_without_room_is_refused_in_a_sentence(tmp_path: Path) -> None:
    kept = KeptEmbeddings(tmp_path / "embeddings", max_bytes=1000)
    with pytest.raises(EmbeddingsUnavailableError, match="PROMPT: no room for its embedding: it takes"):
        kept.put(embedding(1))


def test_another_process_leaves_them(tmp_path: Path) -> None:
    kept, said = KeptEmbeddings(tmp_path / "embeddings"), tmp_path / "key"
    with other_process(PUT, str(tmp_path / "embeddings"), str(said)):
        tokens, pooled = kept.pair(None, said.read_text())
    assert tokens[1].min() == 1 == tokens[1].max() and pooled is not None and pooled[1].tolist() == [1.0] * 4
