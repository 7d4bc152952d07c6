"""LoRAs over the server: the pictures are diffusers' with the same deltas fused, whoever else is in the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tritonclient.utils import InferenceServerException

import lora_files
from file_server import wait_for
from lora_oracle import Oracle
from swiftdiffusion.clients import GenerationInfo
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from wire import PROMPT, Loras, drawn_together, generate, generate_with, metrics

if TYPE_CHECKING:
    from conftest import TinyServer


@pytest.fixture(scope="module")
def oracle(tiny: TinyServer) -> Oracle:
    return Oracle(tiny, lora_files.three(BaseModules.of(Checkpoint(tiny.checkpoint)).shapes))


SETS: tuple[Loras, ...] = (
    [("attention", 1.0)],
    [("attention", -0.5)],
    [("loha", 0.8)],
    [("everything", 0.7)],
    [("attention", 0.6), ("loha", 1.0)],
    [("everything", 0.3), ("attention", 0.4), ("loha", -1.0)],
)


@pytest.mark.parametrize("loras", SETS, ids=str)
def test_pictures_are_those_of_fused_weights(tiny: TinyServer, oracle: Oracle, loras: Loras) -> None:
    picture = generate_with(tiny, loras, LORA_BOUND=0)
    assert picture.distance(oracle.picture(loras)) <= 0.5
    assert picture.distance(oracle.picture([])) > 1
    assert [(lora["name"], lora["scale"], lora["patched_at_step"]) for lora in picture.info["loras"]] == [
        (name, scale, 0) for name, scale in loras
    ]
    assert all(lora["modules"] > 0 for lora in picture.info["loras"])


@pytest.mark.parametrize("fields", [{"PROMPT_SYNTAX": "weighted"}, {"CLIP_SKIP": 1}], ids=["weighted", "clip skip"])
def test_prompts_are_encoded_again_as_the_request_wants_them(
    tiny: TinyServer, oracle: Oracle, fields: dict[str, Any]
) -> None:
    text, chunks = "red " * 75 + "cat", [[("red " * 75, 1.0)], [("cat", 1.0)]]
    loras: Loras = [("everything", 0.7)]
    told: dict[str, Any] = (
        {"chunks": chunks}
        if "PROMPT_SYNTAX" in fields
        else {"prompt": text, "negative_prompt": "blurry", "clip_skip": fields["CLIP_SKIP"]}
    )
    picture = generate_with(tiny, loras, LORA_BOUND=0, PROMPT=text, NEGATIVE_PROMPT="blurry", **fields)
    assert picture.distance(oracle.picture(loras, **told)) <= 0.5
    assert picture.distance(oracle.picture([], **told)) > 1


def test_a_raw_dump_acts_as_the_config_beside_it_says_and_info_tells_of_one_without(
    tiny: TinyServer, oracle: Oracle
) -> None:
    unet = BaseModules.of(Checkpoint(tiny.checkpoint)).shapes["unet"]
    attention = {"unet": {name: shape for name, shape in unet.items() if "attn" in name}}
    files = [tiny.loras / "adapter_model.safetensors", tiny.loras / "adapter_config.json"]
    try:
        for alpha in (4.0, 16.0):
            made = lora_files.peft(
                attention, prefix=lambda component: "base_model.model.", alpha=lambda module, rank, alpha=alpha: alpha
            )
            made.save(files[0])
            oracle.knows("adapter_model", made)
            picture = generate_with(tiny, [("adapter_model", 1.0)])
            assert picture.distance(oracle.picture([("adapter_model", 1.0)])) <= 0.5
            notes = picture.info["loras"][0]["notes"]
            assert notes == [] if files[1].exists() else notes[0].startswith("alpha = rank was assumed")
            files[1].write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16}))
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def test_norms_and_biases_go_on_and_off(tiny: TinyServer, oracle: Oracle) -> None:
    vectors = BaseModules.of(Checkpoint(tiny.checkpoint)).vectors
    made = lora_files.differences({}, {part: vectors[part] for part in ("unet", "text_encoder")})
    file = made.save(tiny.loras / "vectors.safetensors")
    oracle.knows("vectors", made)
    try:
        for loras in ([("vectors", 0.5)], [], [("vectors", 0.5), ("attention", 1.0)], [("attention", 1.0)]):
            assert generate_with(tiny, loras).distance(oracle.picture(loras)) <= 0.5
    finally:
        file.unlink()


def test_the_order_of_loras_does_not_matter(tiny: TinyServer) -> None:
    loras: Loras = [("attention", 0.6), ("loha", 1.0), ("everything", 0.2)]
    first, second = (generate_with(tiny, given, GUIDANCE_SCALE=1.0) for given in (loras, loras[::-1]))
    assert (first.image == second.image).all()


def test_without_loras_the_base_model_is_as_it_was(tiny: TinyServer, oracle: Oracle) -> None:
    generate_with(tiny, [("everything", 1.0)])
    assert generate_with(tiny, []).distance(oracle.picture([])) <= 0.5


def test_a_patch_step_replays_a_run(tiny: TinyServer, oracle: Oracle) -> None:
    loras: Loras = [("attention", 1.0)]
    exact = generate_with(tiny, loras)
    for step in (0, 1, 3):
        late = generate_with(tiny, loras, LORA_PATCH_STEP=step)
        assert late.info["loras"][0]["patched_at_step"] == step
        assert late.distance(oracle.picture(loras, switch_at=step)) <= 0.5
        assert (late.distance(exact) < 0.01) == (step == 0)


def test_requests_with_different_sets_share_steps_and_not_loras(tiny: TinyServer) -> None:
    sets: list[Loras] = [[], *SETS, [("attention", 1.0)]]
    alone = [generate_with(tiny, loras, STEPS=8, SEED=number) for number, loras in enumerate(sets)]
    together = drawn_together(lambda item: generate_with(tiny, item[1], STEPS=8, SEED=item[0]), list(enumerate(sets)))
    for solo, shared in zip(alone, together, strict=True):
        assert shared.distance(solo) <= 0.5


def test_resident_loras_say_so(tiny: TinyServer) -> None:
    def told() -> tuple[str, float]:
        lora = generate_with(tiny, [("attention", 0.9)]).info["loras"][0]
        return lora["source"], lora["patch_ms"]

    wait_for(lambda: told() == ("gpu", 0.0))  # once every shard that evaluates some of it has it
    lora = generate_with(tiny, [("attention", 0.8)]).info["loras"][0]
    assert lora["source"] == "host" and lora["patch_ms"] > 0


def test_a_file_added_while_the_server_runs_is_served(tiny: TinyServer) -> None:
    with pytest.raises(InferenceServerException, match="attentoin"):
        generate_with(tiny, [("attentoin", 1.0)])
    (tiny.loras / "added.safetensors").write_bytes((tiny.loras / "attention.safetensors").read_bytes())
    first, second = (generate_with(tiny, [(name, 1.0)], GUIDANCE_SCALE=1.0) for name in ("added", "attention"))
    assert (first.image == second.image).all()


def test_a_loras_defaults_of_the_catalogue_hold_where_the_request_is_silent(tiny: TinyServer) -> None:
    index = tiny.loras / "catalogue.json"
    wanted = {"steps": 3, "guidance_scale": 2.5, "scheduler": "ddim"}
    index.write_text(json.dumps({"loras": {"fast": {"location": "attention.safetensors", "scale": 0.6, **wanted}}}))
    try:
        silent = generate(tiny, tiny.model, PROMPT=PROMPT, SEED=7, LORAS=json.dumps([{"name": "fast"}]))
        louder = generate_with(tiny, [("fast", 0.6)], STEPS=4, GUIDANCE_SCALE=5.0)
    finally:
        index.unlink()
    assert {name: silent.info[name] for name in wanted} == wanted
    assert silent.info["lora_defaults"] == dict.fromkeys(wanted, "fast")
    assert not GenerationInfo.model_validate(silent.info).model_extra
    said = generate_with(tiny, [("attention", 0.6)], STEPS=3, GUIDANCE_SCALE=2.5, SCHEDULER="ddim")
    assert silent.distance(said) < 0.01
    assert "lora_defaults" not in said.info
    assert louder.info["lora_defaults"] == {"scheduler": "fast"}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_bad_loras_end_their_request_with_a_sentence_and_nothing_else(
    tiny: TinyServer, oracle: Oracle, protocol: str, tmp_path: Path
) -> None:
    good = (tiny.loras / "attention.safetensors").read_bytes()
    (tiny.loras / "truncated.safetensors").write_bytes(good[:-100])
    (tiny.loras / "pickle.safetensors").write_bytes(b"\x80\x04}.")
    for name, said in {
        "truncated": 'LORAS names "truncated": .*safetensors',
        "pickle": 'LORAS names "pickle": .*safetensors',
        "nobody": 'LORAS names "nobody"; allowed',
        "../attention": r'LORAS names "\.\./attention"; allowed',
    }.items():
        with pytest.raises(InferenceServerException, match=said):
            generate(tiny, tiny.model, protocol, PROMPT=PROMPT, LORAS=json.dumps([{"name": name}]))
    assert generate_with(tiny, [("attention", 1.0)]).distance(oracle.picture([("attention", 1.0)])) <= 0.5


def test_metrics_tell_of_loads_and_patches(tiny: TinyServer) -> None:
    generate_with(tiny, [("attention", 0.321)])
    before = metrics(tiny)
    shard = generate_with(tiny, [("attention", 0.123)]).info["shards"][0]
    after = metrics(tiny)
    for name in (
        'swiftdiffusion_lora_loads_total{source="disk"}',
        'swiftdiffusion_lora_load_seconds_count{source="host"}',
        f'swiftdiffusion_lora_patch_seconds_count{{shard="{shard}"}}',
        "swiftdiffusion_lora_delay_steps_count",
        'swiftdiffusion_lora_cache_bytes{cache="host"}',
    ):
        assert after[name] > 0
        if "count" in name:
            assert after[name] > before[name]
