"""Files that are not what they say: each is refused with a sentence, and nothing is written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import checkpoints
import lora_files
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.safetensors_file import FileLimits, read_lora_file
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl")))


@pytest.fixture(scope="module")
def canonicaliser(checkpoint: Checkpoint) -> Canonicaliser:
    return Canonicaliser(checkpoint, FileLimits(file_bytes=2**22, header_bytes=2**17, tensors=100), max_rank=64)


def good() -> Tensors:
    return {
        f"{QUERY}.lora_up.weight": torch.ones(32, 2),
        f"{QUERY}.lora_down.weight": torch.ones(2, 32),
        f"{QUERY}.alpha": torch.tensor(1.0),
    }


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def header(**entries: object) -> bytes:
    return json.dumps(entries).encode()


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

BYTES: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "pickle": pickle.dumps({"a": 1}),
    "zip of torch.save": b"PK\x03\x04" + b"\0" * 200,
    "giant header": raw(b"{}", length=2**40),
    "header above the limit": raw(b" " * (2**17 + 1)),
    "header cut off": raw(b'{"a":', length=100),
    "header not JSON": raw(b"\xff\xfe{}"),
    "header a list": raw(b"[]"),
    "nested deeply": raw(b"[" * 60_000),
    "overlapping offsets": raw(header(a=F32, b=F32), b"\0" * 4),
    "offsets beyond the file": raw(header(a={**F32, "data_offsets": [0, 400]}), b"\0" * 4),
    "negative offsets": raw(header(a={**F32, "data_offsets": [-4, 0]}), b"\0" * 4),
    "a hole": raw(header(a={**F32, "data_offsets": [4, 8]}), b"\0" * 8),
    "bytes left over": raw(header(a=F32), b"\0" * 400),
    "shape beyond the data": raw(header(a={**F32, "shape": [2**62, 4]}), b"\0" * 4),
    "shape that overflows": raw(header(a={**F32, "shape": [2**63, 2**63]}), b"\0" * 4),
    "many entries": raw(
        header(**{str(i): {**F32, "data_offsets": [4 * i, 4 * i + 4]} for i in range(101)}), b"\0" * 404
    ),
    "unknown type": raw(header(a={**F32, "dtype": "F1024"}), b"\0" * 4),
    "integers": raw(header(a={**F32, "dtype": "I32"}), b"\0" * 4),
    "metadata no texts": raw(header(__metadata__={"a": [1]}, a=F32), b"\0" * 4),
    "metadata no object": raw(header(__metadata__=3, a=F32), b"\0" * 4),
    "longer than allowed": raw(header(a={"dtype": "U8", "shape": [2**22], "data_offsets": [0, 2**22]}), b"\0" * 2**22),
    "no tensors": raw(b"{}"),
}


def refused(canonicaliser: Canonicaliser, directory: Path, name: str = "lora.safetensors") -> str:
    target = directory / "canonical.safetensors"
    with pytest.raises(InvalidRequestError) as caught:
        canonicaliser(directory / name, target)
    assert not target.exists()
    assert 10 < len(str(caught.value)) < 1200
    return str(caught.value)


@pytest.mark.parametrize("case", BYTES)
def test_bytes_that_are_no_lora(canonicaliser: Canonicaliser, tmp_path: Path, case: str) -> None:
    (tmp_path / "lora.safetensors").write_bytes(BYTES[case])
    refused(canonicaliser, tmp_path)


def changed(name: str, tensor: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: tensor}


CONTENT: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "NaN": (changed(f"{QUERY}.lora_up.weight", torch.full((32, 2), torch.nan)), "NaN"),
    "infinite": (changed(f"{QUERY}.lora_down.weight", torch.full((2, 32), torch.inf)), "infinite"),
    "infinite alpha": (changed(f"{QUERY}.alpha", torch.tensor(torch.inf)), "infinite"),
    "alpha of two values": (changed(f"{QUERY}.alpha", torch.ones(2)), "alpha has 2 values"),
    "wrong shape": (changed(f"{QUERY}.lora_up.weight", torch.ones(48, 2)), "mid_block"),
    "ranks that differ": (changed(f"{QUERY}.lora_up.weight", torch.ones(32, 3)), "mid_block"),
    "one dimension": (changed(f"{QUERY}.lora_up.weight", torch.ones(64)), "two or four dimensions"),
    "no values": (changed(f"{QUERY}.lora_down.weight", torch.ones(0, 32)), "two or four dimensions"),
    "rank too high": (
        lambda _: {f"{QUERY}.lora_up.weight": torch.ones(32, 65), f"{QUERY}.lora_down.weight": torch.ones(65, 32)},
        "rank is 65; allowed: 1 to 64",
    ),
    "half a pair": (lambda t: {name: v for name, v in t.items() if "lora_up" not in name}, "not one complete"),
    "alpha alone": (lambda t: {f"{QUERY}.alpha": t[f"{QUERY}.alpha"]}, "no module; skipped: 1 × alpha without factors"),
    "rank 0 alone": (
        lambda _: {f"{QUERY}.lora_up.weight": torch.ones(32, 0), f"{QUERY}.lora_down.weight": torch.ones(0, 32)},
        "no module; skipped: 1 × module of rank 0",
    ),
    "quantised weights": (
        lambda t: {name: v.to(torch.int8) for name, v in t.items()},
        "torch.int8; allowed: floating point, or one whole number",
    ),
    "half of LoKr": (lambda _: {f"{QUERY}.lokr_w1": torch.ones(2, 2)}, "lokr_w2"),
    "of another base": (lambda t: {name.replace("mid_block", "mid_blocks"): v for name, v in t.items()}, "mid_blocks"),
    "a path for a name": (changed("../../../etc/passwd.lora_up.weight", torch.ones(1, 1)), "../../../etc/passwd"),
    "a full difference and factors": (changed(f"{QUERY}.diff", torch.ones(32, 32)), "(diff, down, up) are not one"),
    "a difference that does not fit": (lambda _: {f"{QUERY}.diff": torch.ones(32, 31)}, "difference is [32, 31]"),
    "a difference without dimensions": (lambda _: {f"{QUERY}.diff": torch.tensor(1.0)}, "difference is []"),
    "a difference of rank and file": (lambda _: {f"{QUERY}.diff": torch.ones(32)}, "difference is [32]"),
    "a norm that does not fit": (lambda _: {"lora_unet_conv_norm_out.w_norm": torch.ones(17)}, "difference is [17]"),
    "factors of a norm": (
        lambda _: {f"lora_unet_conv_norm_out.lora_{role}.weight": torch.ones(2, 2) for role in ("up", "down")},
        "conv_norm_out: its tensors (down, up)",
    ),
    "a bias that is not there": (changed(f"{QUERY}.diff_b", torch.ones(32)), "name nothing that this checkpoint has"),
    "OFT of other blocks": (lambda _: {f"{QUERY}.oft_blocks": torch.ones(4, 7, 7)}, "blocks of 32 outputs"),
    "OFT without blocks": (lambda _: {f"{QUERY}.oft_blocks": torch.ones(1)}, "blocks of 32 outputs"),
    "BOFT that is no butterfly": (lambda _: {f"{QUERY}.oft_blocks": torch.ones(9, 8, 4, 4)}, "no butterfly"),
    "GLoRA that is not whole": (lambda _: {f"{QUERY}.a1.weight": torch.ones(32, 2)}, "(a1) are not one complete"),
    "GLoRA that does not fit": (
        lambda _: (
            {f"{QUERY}.{role}.weight": torch.ones(32, 32) for role in ("a1", "a2", "b1")}
            | {f"{QUERY}.b2.weight": torch.ones(3, 32)}
        ),
        "GLoRA factors are [32, 32]",
    ),
    "GLoRA with a core": (lambda _: {f"{QUERY}.bm.weight": torch.ones(2, 2, 3, 3)}, "GLoRA with a core, which is not"),
    "IA3 that does not fit": (
        lambda _: {f"{QUERY}.weight": torch.ones(31), f"{QUERY}.on_input": torch.tensor(0)},
        "IA3 weight has 31 values; wanted: 32",
    ),
    "IA3 of two minds": (
        lambda _: {f"{QUERY}.weight": torch.ones(32), f"{QUERY}.on_input": torch.ones(2)},
        "on_input has 2 values",
    ),
    "DoRA over OFT": (
        lambda _: {f"{QUERY}.oft_blocks": torch.ones(8, 4, 4), f"{QUERY}.dora_scale": torch.ones(32, 1)},
        "(dora_scale, oft_blocks) are not one complete",
    ),
    "a whole weight": (lambda _: {f"{QUERY}.weight": torch.ones(32, 32)}, "whole weights and no differences"),
    "a whole weight of PEFT": (
        lambda _: {"base_model.model.conv_in.modules_to_save.default.weight": torch.ones(16, 4, 3, 3)},
        "whole weights and no differences, which is not served: base_model",
    ),
    "PEFT's IA3": (lambda _: {"base_model.model.conv_in.ia3_l": torch.ones(16, 1)}, "IA3 as PEFT saves it, which is"),
    "PEFT's OFT": (lambda _: {"base_model.model.conv_in.oft_R.weight": torch.ones(16, 1)}, "OFT as PEFT saves it"),
    "PEFT's BOFT": (lambda _: {"base_model.model.conv_in.boft_s": torch.ones(16, 1)}, "BOFT as PEFT saves it"),
    "VeRA": (lambda _: {"base_model.model.conv_in.vera_lambda_b": torch.ones(16)}, "VeRA, which is not served"),
    "textual inversion": (changed("bundle_emb.token.clip_l", torch.ones(2, 2)), "textual inversion, which is not"),
    "LLLite": (lambda _: {"lllite_unet_x.conditioning1.0.weight": torch.ones(2, 2)}, "LLLite, which is not served"),
    "one good and one unknown": (changed("lora_unet_nowhere.alpha", torch.tensor(1.0)), "lora_unet_nowhere.alpha"),
    "a module twice": (changed(f"unet.{QUERY.removeprefix('lora_unet_')}.lora_B.weight", torch.ones(32, 2)), "twice"),
    "two forms at once": (changed(f"{QUERY}.lokr_w1", torch.ones(2, 2)), "not one complete"),
    "LoKr that does not fit": (
        lambda _: {f"{QUERY}.lokr_w1": torch.ones(3, 3), f"{QUERY}.lokr_w2": torch.ones(8, 8)},
        "24 × 24",
    ),
    "a core that does not fit": (changed(f"{QUERY}.lora_mid.weight", torch.ones(3, 3, 1, 1)), "lora_mid"),
    "magnitudes that do not fit": (changed(f"{QUERY}.dora_scale", torch.ones(31, 1)), "magnitude"),
    "an embedding": (
        lambda _: {"lora_te1_text_model_embeddings_token_embedding.alpha": torch.tensor(1.0)},
        "token_emb",
    ),
}


@pytest.mark.parametrize("case", CONTENT)
def test_tensors_that_do_not_fit(canonicaliser: Canonicaliser, tmp_path: Path, case: str) -> None:
    change, said = CONTENT[case]
    save_file(change(good()), tmp_path / "lora.safetensors")
    assert said in refused(canonicaliser, tmp_path)


@pytest.mark.parametrize(
    "settings_text",
    [
        "[",
        "[]",
        "[" * 50_000,
        '{"unet.lora_alpha": "x"}',
        '{"unet.lora_alpha": -1}',
        '{"unet.lora_alpha": 1e400}',
        '{"unet.alpha_pattern": {"(a+)+$": 1}}',
        '{"unet.alpha_pattern": 3}',
        '{"unet.alpha_pattern": {"to_q": true}}',
    ],
)
def test_settings_of_peft_that_make_no_sense(canonicaliser: Canonicaliser, tmp_path: Path, settings_text: str) -> None:
    made = lora_files.peft({"unet": {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (32, 32)}})
    made.metadata = {"lora_adapter_metadata": settings_text}
    made.save(tmp_path / "lora.safetensors")
    assert "lora_adapter_metadata" in refused(canonicaliser, tmp_path)


def test_a_good_file_after_bad_ones(canonicaliser: Canonicaliser, tmp_path: Path) -> None:
    save_file(good(), tmp_path / "lora.safetensors")
    assert canonicaliser.read(tmp_path / "lora.safetensors").modules == {"unet": 1}


@given(data=st.binary(max_size=400), position=st.integers(0, 500), cut=st.integers(0, 600))
@settings(max_examples=200)
def test_a_file_changed_anywhere_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, position: int, cut: int
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "lora.safetensors"
    save_file(good(), file)
    content = file.read_bytes()
    content = (content[:position] + data + content[position + len(data) :])[: max(cut, position + len(data))]
    file.write_bytes(content)
    try:
        tensors = read_lora_file(file).tensors
    except InvalidRequestError:
        return
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


@given(st.lists(st.text(max_size=60), min_size=1, max_size=8, unique=True))
@settings(max_examples=200)
def test_names_of_any_kind_are_refused_in_a_sentence(
    canonicaliser: Canonicaliser, tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("names")
    tails = (".lora_up.weight", ".alpha", ".hada_w1_a", "")
    starts = ("lora_unet_", "unet.", "lora_te1_", "", "diffusion_model.input_blocks.")
    tensors = {starts[i % len(starts)] + name + tails[i % len(tails)]: torch.ones(1, 1) for i, name in enumerate(names)}
    save_file(tensors, directory / "lora.safetensors")
    refused(canonicaliser, directory)


BOMBS: dict[str, Tensors] = {
    "LoKr": {f"{QUERY}.lokr_w1_a": torch.ones(10**5, 1), f"{QUERY}.lokr_w1_b": torch.ones(1, 10**5)}
    | {f"{QUERY}.lokr_w2": torch.ones(2, 2)},
    "LoKr without dimensions": {f"{QUERY}.lokr_w1_a": torch.tensor(1.0), f"{QUERY}.lokr_w1_b": torch.tensor(1.0)}
    | {f"{QUERY}.lokr_w2": torch.ones(2, 2)},
    "Tucker": {
        f"{QUERY}.lora_up.weight": torch.ones(32, 1),
        f"{QUERY}.lora_mid.weight": torch.ones(1, 1, 300, 300),
        f"{QUERY}.lora_down.weight": torch.ones(1, 10**5),
    },
}


@pytest.mark.parametrize("case", BOMBS)
def test_small_files_that_would_grow(canonicaliser: Canonicaliser, tmp_path: Path, case: str) -> None:
    save_file(BOMBS[case], tmp_path / "lora.safetensors")
    refused(canonicaliser, tmp_path)


def test_what_does_not_fit_into_float32(canonicaliser: Canonicaliser, tmp_path: Path) -> None:
    save_file({**good(), f"{QUERY}.lora_up.weight": torch.ones(32, 2).double() * 1e300}, tmp_path / "lora.safetensors")
    assert "infinite" in refused(canonicaliser, tmp_path)


MOST = 3e38
OVERFLOWS: dict[str, Tensors] = {
    "OFT": {f"{QUERY}.oft_blocks": MOST * torch.randn(8, 4, 4).sign()},
    "OFT without inverse": {
        f"{QUERY}.oft_blocks": 2.0**60 * torch.outer(torch.ones(4), torch.arange(4.0)).expand(8, 4, 4).contiguous()
    },
    "BOFT": {f"{QUERY}.oft_blocks": MOST * torch.randn(2, 8, 4, 4).sign()},
    "GLoRA": {f"{QUERY}.{role}.weight": torch.full((32, 2), MOST) for role in ("a1", "b1")}
    | {f"{QUERY}.{role}.weight": torch.full((2, 32), MOST) for role in ("a2", "b2")},
    "DoRA": {**good(), f"{QUERY}.lora_up.weight": torch.full((32, 2), MOST), f"{QUERY}.dora_scale": torch.ones(32, 1)},
    "DoRA over LoHa": {f"{QUERY}.hada_w{n}_a": torch.full((32, 2), MOST) for n in "12"}
    | {f"{QUERY}.hada_w{n}_b": torch.full((2, 32), MOST) for n in "12"}
    | {f"{QUERY}.dora_scale": torch.ones(32, 1)},
    "LoKr": {f"{QUERY}.lokr_w1": torch.ones(4, 4)}
    | {f"{QUERY}.lokr_w2_a": torch.full((8, 2), MOST), f"{QUERY}.lokr_w2_b": torch.full((2, 8), MOST)},
}
"""Finite tensors whose merge is not."""


@pytest.mark.parametrize("case", OVERFLOWS)
def test_merges_that_do_not_fit_into_float32(canonicaliser: Canonicaliser, tmp_path: Path, case: str) -> None:
    save_file(OVERFLOWS[case], tmp_path / "lora.safetensors")
    assert "float32" in refused(canonicaliser, tmp_path)


def test_a_canonical_form_that_is_too_large(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_file(good(), tmp_path / "lora.safetensors")
    assert "more than 100 bytes" in refused(Canonicaliser(checkpoint, max_bytes=100), tmp_path)
