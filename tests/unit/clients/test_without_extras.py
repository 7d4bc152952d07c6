"""The command as a client installs it: without what servers need."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVERS = ("safetensors", "torch", "diffusers", "transformers", "packaging", "cachetools", "onnx")
COMMAND = f"""
import sys
for package in {SERVERS!r}:
    sys.modules[package] = None
from typer.testing import CliRunner
from swiftdiffusion.clients.cli import app
for command in sys.argv[1:]:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    print(command, result.exit_code, "Usage" in result.output)
"""


@pytest.mark.parametrize("command", ["", "generate", "serve", "export", "build-engines", "doctor"])
def test_commands_explain_themselves(command: str) -> None:
    answer = subprocess.run([sys.executable, "-c", COMMAND, command], capture_output=True, text=True, check=False)
    assert answer.stdout.split() == [*command.split(), "0", "True"], answer.stderr
