"""The text encoders' tokenizer: a CLIP byte-pair tokenizer with one token for each word of the demo's world."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from .captions import ARTICLES, CLOSINGS, EXTRA_PHRASES, OPENINGS, PLACES, RELATIONS
from .scenes import BACKGROUND_COLOURS, SHAPE_COLOURS, SHAPES, TEXTURES

MAX_TOKENS = 77
START = "<|startoftext|>"
END = "<|endoftext|>"


def vocabulary_words() -> list[str]:
    """Every word that gets a token of its own, sorted."""
    phrases = [
        *SHAPES, *SHAPE_COLOURS, *BACKGROUND_COLOURS, *TEXTURES, *ARTICLES, *OPENINGS, *CLOSINGS, *EXTRA_PHRASES,
        *(phrase for group in (RELATIONS, PLACES) for phrases in group.values() for phrase in phrases),
        "an on with background",
    ]  # fmt: skip
    return sorted({word for phrase in phrases for word in phrase.split()})


def _byte_characters() -> list[str]:
    """The 256 printable characters by which CLIP's byte-level BPE writes bytes, in byte order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [table[byte] for byte in sorted(table)]


def byte_pair_merges(words: list[str]) -> list[tuple[str, str]]:
    """Learns merges greedily, most frequent pair first, until each word is one token.

    Args:
        words: lower-case words.

    Returns:
        Pairs in the order in which they are applied.
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for word in pieces:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            return merges
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        pieces = [_apply_merge(word, best) for word in pieces]


def _apply_merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes vocab.json, merges.txt and the configuration of the tokenizer.

    Args:
        folder: made if it does not exist.

    Returns:
        The tokenizer, loaded from the folder; ids: bytes, bytes that end a word, merges, start, end (also padding).
    """
    folder.mkdir(parents=True, exist_ok=True)
    characters = _byte_characters()
    merges = byte_pair_merges(vocabulary_words())
    tokens = [*characters, *(character + "</w>" for character in characters), *(a + b for a, b in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    configuration = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "model_max_length": MAX_TOKENS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)
