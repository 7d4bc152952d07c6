"""Alpha, rank and their patterns, wherever a file's settings stand; the oracle is PEFT's own merge."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file

import checkpoints
import lora_files
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora, notes_of
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules, adaptable_weights
from swiftdiffusion.python_backends.lora.files.outside_settings import OutsideSettings
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
SETTINGS = ("r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl")))


@pytest.fixture(scope="module")
def canonicaliser(checkpoint: Checkpoint) -> Canonicaliser:
    return Canonicaliser(checkpoint)


@pytest.fixture(scope="module")
def loaded(checkpoint: Checkpoint) -> torch.nn.Module:
    return checkpoint.load_unet(torch.device("cpu"), torch.float32)


class Dump:
    """What PEFT saves of a UNet's adapter, and the weights that it merges."""

    def __init__(self, unet: torch.nn.Module, config: PeftConfig, directory: Path) -> None:
        torch.manual_seed(3)
        model = get_peft_model(copy.deepcopy(unet), config)
        model.save_pretrained(directory)
        self.tensors = load_file(directory / "adapter_model.safetensors")
        self.config = (directory / "adapter_config.json").read_bytes()
        self.settings = {name: json.loads(self.config).get(name) for name in SETTINGS}
        self.merged = adaptable_weights(model.merge_and_unload())
        self.unet, self.file = unet, directory / "lora.safetensors"

    def save(self, metadata: dict[str, str] | None = None) -> Path:
        """A file without settings of its own, or with these."""
        save_file(self.tensors, self.file, metadata)
        return self.file

    def check(self, lora: CanonicalLora) -> None:
        """Patched in, the LoRA gives PEFT's weights."""
        unet = copy.deepcopy(self.unet)
        Patcher({"unet": unet}).apply([(lora, 1.0)])
        for name, weight in adaptable_weights(unet).items():
            assert torch.allclose(weight, self.merged[name], rtol=1e-5, atol=1e-5), name


def lora_config(**more: Any) -> LoraConfig:
    modules = r".*mid_block.*(to_q|to_k|to_out\.0|conv1|ff\.net\.2)"
    return LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": modules, "init_lora_weights": False, **more})


@pytest.fixture(scope="module")
def dump(loaded: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Dump:
    """With alpha four times the rank, and modules of their own alpha and rank."""
    config = lora_config(
        alpha_pattern={"attn1.to_q": 3, r".*attn2\.to_(q|k)": 5, "to_out.0": 2}, rank_pattern={"ff.net.2": 8}
    )
    return Dump(loaded, config, tmp_path_factory.mktemp("dump"))


def test_an_adapter_config_beside_the_file(canonicaliser: Canonicaliser, dump: Dump) -> None:
    lora = canonicaliser.read(dump.save(), OutsideSettings(adapter_config=dump.config))
    assert lora.notes == ()
    dump.check(lora)


def test_an_entry_of_the_header_for_each_setting(canonicaliser: Canonicaliser, dump: Dump) -> None:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in dump.settings.items()}
    dump.check(canonicaliser.read(dump.save({**texts, "use_rslora": "False", "format": "pt"})))


@pytest.mark.parametrize("name", ["lora_adapter_metadata", "adapter_config"])
def test_the_whole_config_in_the_header(canonicaliser: Canonicaliser, dump: Dump, name: str) -> None:
    dump.check(canonicaliser.read(dump.save({name: dump.config.decode()})))


def test_diffusers_settings_of_a_component(canonicaliser: Canonicaliser, dump: Dump) -> None:
    settings = {f"unet.{name}": value for name, value in dump.settings.items()}
    dump.check(canonicaliser.read(dump.save({"lora_adapter_metadata": json.dumps(settings)})))


def test_an_alpha_in_the_catalogue(canonicaliser: Canonicaliser, loaded: torch.nn.Module, tmp_path: Path) -> None:
    dump = Dump(loaded, lora_config(), tmp_path)
    lora = canonicaliser.read(dump.save(), OutsideSettings(alpha=16.0))
    assert lora.notes == ()
    dump.check(lora)


def test_rslora(canonicaliser: Canonicaliser, loaded: torch.nn.Module, tmp_path: Path) -> None:
    dump = Dump(loaded, lora_config(use_rslora=True), tmp_path)
    dump.check(canonicaliser.read(dump.save(), OutsideSettings(adapter_config=dump.config)))


@pytest.mark.parametrize("kind", [LoHaConfig, LoKrConfig])
def test_other_adapters_of_peft(
    canonicaliser: Canonicaliser, loaded: torch.nn.Module, tmp_path: Path, kind: type[LoHaConfig | LoKrConfig]
) -> None:
    """Small modules have whole Kronecker factors, which PEFT scales all the same."""
    config = kind(r=4, alpha=6, target_modules=r".*mid_block.*(to_q|ff\.net\.2|conv1)", init_weights=False)
    dump = Dump(loaded, config, tmp_path)
    dump.check(canonicaliser.read(dump.save(), OutsideSettings(adapter_config=dump.config)))


def test_what_nothing_says_is_said_to_be_assumed(canonicaliser: Canonicaliser, dump: Dump, tmp_path: Path) -> None:
    target = tmp_path / "canonical.safetensors"
    notes = canonicaliser(dump.save(), target)
    assert len(notes) == 1
    assert notes[0].startswith(f"alpha = rank was assumed for {len(dump.tensors) // 2} modules")
    assert notes_of(target) == list(CanonicalLora.open(target).notes) == list(notes)


@pytest.mark.parametrize("roles", [("lora.down.weight", "lora.up.weight"), ("lora_down.weight", "lora_up.weight")])
def test_formats_whose_alpha_is_one_by_definition_assume_nothing(
    canonicaliser: Canonicaliser, tmp_path: Path, roles: tuple[str, str]
) -> None:
    made = lora_files.peft({"unet": {QUERY: (32, 32)}}, roles=roles)
    assert canonicaliser.read(made.save(tmp_path / "lora.safetensors")).notes == ()


def test_a_config_beside_files_of_other_tools_is_not_theirs(canonicaliser: Canonicaliser, tmp_path: Path) -> None:
    file = lora_files.kohya({"unet": {QUERY: (32, 32)}}).save(tmp_path / "lora.safetensors")
    config = json.dumps({"r": 64, "lora_alpha": 128}).encode()
    lora = canonicaliser.read(file, OutsideSettings(adapter_config=config))
    assert (lora.groups[0].scales, lora.notes) == ((0.5,), ())


@pytest.mark.parametrize("names", ["kohya", "peft"])
@pytest.mark.parametrize(
    "metadata",
    [
        {"ss_network_alpha": "0", "ss_network_args": '{"conv_alpha": "0"}'},
        {"ss_network_alpha": "10000000"},
        {"alpha": "see card", "lora_alpha": "see card"},
        {"r": "64", "rank_pattern": '{"to_q": 8}', "use_rslora": "yes", "use_dora": "true"},
        {"peft_type": "mine", "init_lora_weights": "pissa", "alpha_pattern": '{"attn9": 1}'},
        {"lora_adapter_metadata": "{", "adapter_config": "none of yours"},
        {"lora_adapter_metadata": '{"unet.r": 64, "unet.lora_alpha": 0, "unet.use_dora": true}'},
    ],
)
def test_with_an_alpha_of_its_own_nothing_else_is_asked(
    canonicaliser: Canonicaliser, tmp_path: Path, metadata: dict[str, str], names: str
) -> None:
    made = lora_files.kohya({"unet": {QUERY: (32, 32)}})
    if names == "peft":
        made = lora_files.peft({"unet": {QUERY: (32, 32)}})
        made.tensors[f"unet.{QUERY}.alpha"] = torch.tensor(2.0)
    made.metadata = metadata
    lora = canonicaliser.read(made.save(tmp_path / "lora.safetensors"), OutsideSettings(b"<html>"))
    assert (lora.groups[0].scales, lora.notes) == ((0.5,), ())


@pytest.mark.parametrize(
    "metadata",
    [
        {"ss_network_alpha": "1.0", "ss_network_dim": "8", "ss_network_args": '{"conv_alpha": "2"}'},
        {"lora_alpha": "1", "alpha": "1", "r": "8", "use_rslora": "true", "alpha_pattern": '{"attn9": 1}'},
    ],
)
def test_kohyas_modules_without_alpha_have_the_rank_as_diffusers_and_kohya_load_them(
    canonicaliser: Canonicaliser, tmp_path: Path, metadata: dict[str, str]
) -> None:
    shapes = {QUERY: (32, 32), "mid_block.resnets.0.conv1": (32, 32, 3, 3)}
    made = lora_files.kohya({"unet": shapes}, alpha=lambda number, rank: None)
    made.metadata = metadata
    lora = canonicaliser.read(made.save(tmp_path / "lora.safetensors"))
    assert ({group.scales for group in lora.groups}, lora.notes) == ({(1.0,)}, ())


def test_pefts_modules_have_no_alpha_of_kohyas_header(canonicaliser: Canonicaliser, tmp_path: Path) -> None:
    made = lora_files.peft({"unet": {QUERY: (32, 32)}})
    made.metadata = {"ss_network_alpha": "1", "alpha": "see card"}
    assert canonicaliser.read(made.save(tmp_path / "lora.safetensors")).groups[0].scales == (1.0,)


def test_an_alpha_in_the_catalogue_that_the_file_overrides_is_told_of(
    canonicaliser: Canonicaliser, tmp_path: Path
) -> None:
    file = lora_files.kohya({"unet": {QUERY: (32, 32)}}).save(tmp_path / "lora.safetensors")
    lora = canonicaliser.read(file, OutsideSettings(alpha=16.0))
    assert lora.groups[0].scales == (0.5,)
    assert lora.notes == ("catalogue.json says another alpha than its tensor, which counts, for 1 module",)
    assert canonicaliser.read(file, OutsideSettings(alpha=2.0)).notes == ()


def test_places_that_say_different_alphas_are_told_of(canonicaliser: Canonicaliser, tmp_path: Path) -> None:
    made = lora_files.peft({"unet": {QUERY: (32, 32)}}, metadata={"unet.lora_alpha": 8})
    outside = OutsideSettings(json.dumps({"lora_alpha": 16, "r": 4}).encode(), 2.0)
    lora = canonicaliser.read(made.save(tmp_path / "lora.safetensors"), outside)
    assert lora.groups[0].scales == (2.0,)
    assert lora.notes == (
        "adapter_config.json says another alpha than lora_adapter_metadata, which counts, for 1 module",
        "catalogue.json says another alpha than lora_adapter_metadata, which counts, for 1 module",
    )


SGM = "middle_block.1.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    "pattern",
    [
        QUERY,
        f"unet.{QUERY}",
        f"base_model.model.{QUERY}",
        f"base_model.model.base_model.model.{QUERY}",
        f"^{QUERY}$",
        QUERY.replace(".", r"\."),
        QUERY.replace(".", "_"),
        f"lora_unet_{QUERY.replace('.', '_')}",
        f"lora_unet_{SGM.replace('.', '_')}",
        f"diffusion_model.{SGM}",
        r"mid_block\.attentions\.\d+\..*attn1\.to_q",
        "lora_unet_mid_.*_attn1_to_q",
    ],
)
def test_patterns_name_modules_as_tensors_do(canonicaliser: Canonicaliser, tmp_path: Path, pattern: str) -> None:
    other = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    settings = {"unet.lora_alpha": 4, "unet.alpha_pattern": {pattern: 1}, "unet.rank_pattern": {pattern: 4}}
    made = lora_files.peft({"unet": {QUERY: (32, 32), other: (32, 32)}}, metadata=settings)
    lora = canonicaliser.read(made.save(tmp_path / "lora.safetensors"))
    scales = {module: scale for g in lora.groups for module, scale in zip(g.modules, g.scales, strict=True)}
    assert scales == {QUERY: 0.25, other: 1.0}


@pytest.mark.parametrize("start", ["text_model.", "", "text_encoder.text_model.", "lora_te1_text_model_"])
def test_patterns_of_a_text_encoder(
    checkpoint: Checkpoint, canonicaliser: Canonicaliser, tmp_path: Path, start: str
) -> None:
    module = "encoder.layers.0.self_attn.q_proj"
    shapes = BaseModules.of(checkpoint).shapes["text_encoder"]
    shape = next(shape for name, shape in shapes.items() if name.endswith(module))
    pattern = start + (module.replace(".", "_") if start.endswith("_") else module)
    settings = {"text_encoder.lora_alpha": 4, "text_encoder.alpha_pattern": {pattern: 1}}
    made = lora_files.peft({"text_encoder": {module: shape}}, metadata=settings)
    assert canonicaliser.read(made.save(tmp_path / "lora.safetensors")).groups[0].scales == (0.25,)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alpha_pattern": {"attn9.to_q": 1}}, 'alpha_pattern in adapter_config.json names "attn9.to_q"'),
        ({"rank_pattern": {r"attn[9]\.to_q": 1}}, "rank_pattern in adapter_config.json names"),
        ({"alpha_pattern": {"attn(1.to_q": 1}}, "no regular expression"),
        ({"alpha_pattern": {r"(\w|\w|\w|.)*[XZ]": 1}}, "takes too long to match"),
        ({"alpha_pattern": {"((to_q{1000}){1000}){1000}": 1}}, "allowed: names, . *"),
        ({"alpha_pattern": {"to_q(?R)": 1}}, "allowed: names, . *"),
        ({"alpha_pattern": {"to_q" * 200: 1}}, "allowed: at most 500 characters"),
        ({"alpha_pattern": []}, "alpha_pattern in adapter_config.json is []"),
        ({"lora_alpha": "much"}, 'an alpha in adapter_config.json is "much"'),
        ({"r": 8}, "its rank is 4; adapter_config.json says 8"),
        ({"rank_pattern": {"to_q": 2}}, "its rank is 4; adapter_config.json says 2"),
        ({"use_dora": True}, "no lora_magnitude_vector"),
        ({"peft_type": "VERA"}, '"VERA", which is not served'),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    canonicaliser: Canonicaliser, tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    file = lora_files.peft({"unet": {QUERY: (32, 32)}}).save(tmp_path / "lora.safetensors")
    with pytest.raises(InvalidRequestError) as error:
        canonicaliser.read(file, OutsideSettings(adapter_config=json.dumps(settings).encode()))
    assert said in str(error.value)


def test_a_config_that_is_no_json_is_refused(canonicaliser: Canonicaliser, tmp_path: Path) -> None:
    file = lora_files.peft({"unet": {QUERY: (32, 32)}}).save(tmp_path / "lora.safetensors")
    with pytest.raises(InvalidRequestError, match=r"^adapter_config\.json is not a JSON object"):
        canonicaliser.read(file, OutsideSettings(adapter_config=b"<html>"))


def test_a_content_is_another_under_other_settings() -> None:
    content = "ab" * 32
    keys = [
        OutsideSettings(config, alpha).key(content)
        for config in (None, b"", b"{}", b"{ }")
        for alpha in (None, 1.0, 2.0)
    ]
    assert keys[0] == content
    assert len(set(keys)) == len(keys)
