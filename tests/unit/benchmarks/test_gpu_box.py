"""What runs on a GPU in a given time loses nothing of what is done, and carries what the machine lacks."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from budget import Budget, Outcome, Part, merged
from file_server import wait_for
from wheels import WheelError, Wheels, read_present

NEEDS = {"big": ["small>=2; extra == 'more'", "there>=1.5", "old<2; python_version < '3.12'"], "small": [], "there": []}


def part(code: str, limit_s: float = 60, name: str = "some") -> Part:
    return Part(name, (sys.executable, "-c", code), limit_s)


def test_limits_are_shortened_to_what_is_left() -> None:
    now = [100.0]
    budget, long, late = Budget(60, lambda: now[0]), Part("a", (), 50), Part("b", (), 50, least_s=30)
    assert budget.limit_s(long) == 50
    now[0] += 35
    assert budget.limit_s(long) == 25
    assert budget.limit_s(late) is None
    now[0] += 20
    assert budget.limit_s(long) is None


def test_a_part_that_fails_hangs_or_is_not_there_leaves_the_others(tmp_path: Path) -> None:
    """What a killed part has started is killed as well."""
    hangs = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    parts = [
        part("raise SystemExit(3)", name="fails"),
        part(hangs, limit_s=2, name="hangs"),
        Part("absent", (str(tmp_path / "nothing"),), 5),
        Part("late", ("true",), 5, least_s=1000),
        Part("told", (sys.executable, "-c", "import os; print(os.environ['WORD'])"), 60, environment={"WORD": "done"}),
    ]
    budget = Budget(300)
    outcomes = [budget.run(each, tmp_path / "log", tmp_path) for each in parts]
    assert [outcome.code for outcome in outcomes] == [3, -9, 127, None, 0]
    assert 2 <= outcomes[1].seconds < 30
    assert str(outcomes[3]).split() == ["late", "no", "time", "left"]
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[-1] == "done"
    status = Path(f"/proc/{lines[0]}/status")
    wait_for(lambda: not status.exists() or "zombie" in status.read_text())


def test_a_summary_line() -> None:
    assert str(Outcome("unet", 1, 12.3)).split() == ["unet", "exit", "code", "1,", "12", "s"]


def test_results_become_one_file() -> None:
    first = {"command": "a", "machine": {"load": 1}, "dtype": "torch.float16", "unet": {"x": 1}}
    second = {"command": "b", "machine": {"load": 9}, "dtype": "torch.float16", "vae": {"y": 2}}
    assert merged([first, second]) == first | {"command": "a; b", "vae": {"y": 2}}
    assert merged([first]) == first


def fake_download(wanted: list[str]) -> type[Wheels]:
    class Faked(Wheels):
        def fetch(self, requirement: Requirement, platforms: object = ()) -> Path:
            wanted.append(str(requirement))
            path = self.directory / f"{requirement.name}-3.0-py3-none-any.whl"
            with zipfile.ZipFile(path, "w") as wheel:
                lines = [f"Requires-Dist: {need}" for need in NEEDS[requirement.name]]
                wheel.writestr(f"{requirement.name}-3.0.dist-info/METADATA", "\n".join(["Name: x", *lines, "", "text"]))
            return path

    return Faked


def test_only_what_the_machine_lacks_is_carried(tmp_path: Path) -> None:
    wanted: list[str] = []
    has = read_present("# a remark\nThere==1.0 unknown  # another\n")
    wheels = fake_download(wanted)(tmp_path / "wheels", has, "3.12")
    for text in ("unknown>=7", "big[more]>=1", "big"):
        wheels.add(Requirement(text))
    assert wanted == ["big[more]>=1", 'small>=2; extra == "more"', "there>=1.5"]
    with pytest.raises(WheelError, match=r"big 3\.0 is carried; wanted too: big<3"):
        wheels.add(Requirement("big<3"))


def test_a_wheel_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(WheelError, match=r"(?s)no wheel of absent>=1: .*No matching distribution"):
        Wheels(tmp_path, {}, "3.12").fetch(Requirement("absent>=1"))
