"""Rules and dashboard: what Prometheus' own tool says to them, and whether what they ask for exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MONITORING = ROOT / "deploy/monitoring"
FAMILY = re.compile(r"swiftdiffusion_[a-z0-9_]+")
SERIES = re.compile(r"_(bucket|sum|count)$")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool, which Debian has in the package prometheus"
)


def promtool(*arguments: str | Path) -> None:
    run = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def queries() -> list[str]:
    """Of the dashboard."""
    panels = json.loads((MONITORING / "grafana.json").read_text("utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def recorded() -> set[str]:
    """What the rules record."""
    return set(re.findall(r"record: (\S+)", (MONITORING / "rules.yml").read_text("utf-8")))


def families() -> set[str]:
    """Every family that the backends open."""
    text = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "python_backends").rglob("*.py")))
    return set(re.findall(r'"(swiftdiffusion_[a-z0-9_]+(?:[a-z]))",', text))


@needs_promtool
def test_the_rules_hold_in_what_happens_to_servers() -> None:
    promtool("check", "rules", "rules.yml")
    promtool("test", "rules", "rules_test.yml")


@needs_promtool
def test_every_query_of_the_dashboard_is_one(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries())]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)


@pytest.mark.parametrize("name", ["rules.yml", "grafana.json"])
def test_what_is_asked_for_exists(name: str) -> None:
    text = (MONITORING / name).read_text("utf-8")
    asked = set(re.findall(r"(?<![:\w])swiftdiffusion_\w+(?![\w:])", text))
    assert {SERIES.sub("", each) for each in asked} <= families()
    used = set(re.findall(r"\w+:swiftdiffusion_\w+:\w+", text))
    assert used
    assert used <= recorded()


def test_every_family_is_documented() -> None:
    table = (ROOT / "docs/monitoring.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `(swiftdiffusion_\w+)", table, re.MULTILINE))
    assert documented == families()
    assert len(documented) > 20
