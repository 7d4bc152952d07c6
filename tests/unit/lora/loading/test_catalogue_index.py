"""What an operator may write into `catalogue.json`, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swiftdiffusion.python_backends.lora.loading.catalogue import Catalogue, CatalogueError
from swiftdiffusion.python_backends.lora.loading.catalogue_index import lora_name

SHA256 = "ab" * 32


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[]", "catalogue.json: "),
        ("{", "catalogue.json: Invalid JSON"),
        ("{}", "loras"),
        ('{"loras": {}, "lora": {}}', "lora is not known; allowed: loras"),
        (
            '{"loras": {"x": {"bond": 1}}}',
            "loras.x.bond is not known; allowed: location, sha256, bound, alpha, description, steps, gui",
        ),
        (r'{"loras": {"x": {"location": "x\u0000"}}}', "loras.x.location is .*: .* without a NUL character"),
        ('{"loras": {"x": {"location": "file:///x%00"}}}', "loras.x.location is .*: .* without a NUL character"),
        ('{"loras": {"x": {"location": "file://["}}}', "loras.x.location is .*: .* a path or a URL"),
        ('{"loras": {"x": {"location": "x", "bound": -1}}}', "loras.x.bound is -1: "),
        ('{"loras": {"x": {"location": "x", "bound": "1"}}}', 'loras.x.bound is "1": '),
        ('{"loras": {"x": {"location": "x", "sha256": "abc"}}}', 'loras.x.sha256 is "abc": '),
        ('{"loras": {"x": {"location": "x", "steps": 0}}}', "loras.x.steps is 0: "),
        ('{"loras": {"x": {"location": "x", "guidance_scale": NaN}}}', "guidance_scale"),
        ('{"loras": {"../x": {"location": "x"}}}', r"loras.\.\./x"),
        ('{"loras": {"x\\n": {"location": "x"}}}', "loras.x"),
    ],
)
def test_a_broken_index_names_the_field_at_start(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "catalogue.json").write_text(content)
    with pytest.raises(CatalogueError, match=sentence):
        Catalogue(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "location": st.text(max_size=8) | JSON,
        "sha256": st.just(SHA256) | JSON,
        "bound": st.integers(-1, 3) | JSON,
        "description": st.text(max_size=8) | JSON,
        "other": JSON,
    },
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(st.text(max_size=4) | st.sampled_from(["a", "b"]), ENTRY | JSON, max_size=3) | JSON)
def test_any_index_is_read_or_refused_with_its_name(tmp_path: Path, content: Any) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x")
    (tmp_path / "catalogue.json").write_text(json.dumps({"loras": content}), "utf-8")
    try:
        catalogue = Catalogue(tmp_path)
    except CatalogueError as error:
        assert "catalogue.json" in str(error)
        return
    for name in catalogue.names():
        entry = catalogue.entry(name)
        assert lora_name(name) == name
        assert entry.bound is None or 0 <= entry.bound <= 10_000
        assert entry.sha256 in (None, SHA256)
        assert entry.is_remote or Path(entry.location).is_absolute()
