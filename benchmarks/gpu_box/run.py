"""All that is worth knowing of this project on a GPU, in a given time, without a network.

Starts with Python's own library alone.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
import site
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from budget import Budget, Outcome, Part, merged

logger = logging.getLogger("gpu_box")
ROOT = Path(__file__).resolve().parents[2]
BOX = next((each for each in (ROOT.parent, ROOT / "out/gpu_box") if (each / "wheels").is_dir()), ROOT)
"""Where the wheels are: beside the project, or in a checkout that is carried as a whole."""

PACK = BOX / "server.tar.xz"
WORK = Path(tempfile.gettempdir()) / "swiftdiffusion_gpu_box"
"""Packages and compiled kernels, for the next run too."""

SERVER = WORK / "server/python"
LIMITS_S = {"kernels": 70, "masked": 90, "unet": 110, "ideas": 125}
COMPILED, ENGINES = "compiled", "engines"
DECISIVE = ("install", "unpack", "smoke")


def main() -> int:
    """Runs the parts; 0 if all that were begun passed."""
    names = [part.name for part in _parts(False)]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out/gpu_results", help="directory")
    parser.add_argument("--seconds", type=float, default=545, help="for all (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="parts")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on a CPU too")
    options = parser.parse_args()
    budget = Budget(options.seconds)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "run.log"
    log.write_text("")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logger.addHandler(logging.FileHandler(log))  # appends, as the parts do
    _set_up_environment()
    logger.info("%s", (BOX / "commit.txt").read_text("utf-8") if (BOX / "commit.txt").exists() else ROOT)
    outcomes: list[Outcome] = []
    for part in _unpacking() + [part for part in _parts(options.tiny) if part.name in options.only]:
        logger.info("\n== %s", part.name)
        begin = log.stat().st_size
        outcomes.append(budget.run(part, log, ROOT))
        said = log.read_bytes()[begin:].decode("utf-8", "replace").splitlines()
        sys.stdout.write("\n".join([*said[-40:], ""]))
        logger.info("%s", outcomes[-1])
        _save(options.out, outcomes)
        if part.name in DECISIVE and outcomes[-1].code not in (0, 3) and not options.tiny:
            logger.info("%s failed: nothing else is worth its time", part.name)
            break
    logger.info("\n%s", "\n".join(map(str, outcomes)))
    return int(any(outcome.code for outcome in outcomes))


def _set_up_environment() -> None:
    """The project as a package, carried packages, caches, no network."""
    links, packages, results = WORK / "links", WORK / "packages", WORK / "results"
    own = SERVER / "lib/python{}.{}/site-packages".format(*sys.version_info)
    for directory in (links, packages, results, own):
        directory.mkdir(parents=True, exist_ok=True)
    paths = (WORK / "server/packages", links, packages, *site.getsitepackages())
    (own / "box.pth").write_text("\n".join(map(str, paths)))  # models' processes heed no PYTHONPATH
    for stale in [links / "swiftdiffusion", *results.iterdir()]:
        stale.unlink(missing_ok=True)
    (links / "swiftdiffusion").symlink_to(ROOT)
    os.environ["PYTHONPATH"] = _joined(links, packages, os.environ.get("PYTHONPATH", ""))
    os.environ |= {"TRITON_CACHE_DIR": str(WORK / "triton"), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"}


def _unpacking() -> list[Part]:
    parts, python = [], (sys.executable, "-m")
    wheels = [str(path) for path in BOX.glob("wheels/*.whl")]
    if wheels and not any((WORK / "packages").iterdir()):
        how = ("pip", "install", "--no-index", "--no-deps", "--no-compile", "--target", str(WORK / "packages"))
        parts.append(Part("install", (*python, *how, *wheels), 60))
    if PACK.exists() and not (SERVER / "bin").exists():
        parts.append(Part("unpack", (*python, "tarfile", "-e", str(PACK), str(WORK / "server")), 60))
    return parts


def _parts(tiny: bool) -> list[Part]:
    """All there are, in their order."""
    python = sys.executable
    pytest = ("-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider")
    serving, workers = "tests/gpu/test_serving.py", "1" if tiny else "6"
    tests = (python, *pytest, "tests/gpu", f"--ignore={serving}", "-n", workers, "--timeout=140")
    parts = [Part("smoke", (python, "benchmarks/gpu_box/smoke.py"), 75), Part("tests", tests, 150)]
    for name in _benchmarks():
        if name == ENGINES:  # minutes, where they can be built
            continue
        tuned = ("--tune",) * (name in ("kernels", "grouped_lora") and not tiny)
        parts.append(Part(name, _benchmark(name, name, tiny, *tuned), LIMITS_S.get(name, 60)))
    own = {}
    if PACK.exists():
        python = str(SERVER / "bin/python3")
        own["LD_LIBRARY_PATH"] = _joined(SERVER / "lib", os.environ.get("LD_LIBRARY_PATH", ""))
    parts.append(Part("serving", (python, *pytest, serving), 240, 90, own))
    parts.append(Part(COMPILED, _benchmark(COMPILED, "unet", tiny, "--compiled", "reduce-overhead"), 600, 60))
    return [*parts, Part(ENGINES, _benchmark(ENGINES, ENGINES, tiny), 900, 60)]


def _benchmarks() -> tuple[str, ...]:
    """`PARTS` of benchmarks/gpu.py, whose import may be what fails."""
    body = ast.parse((ROOT / "benchmarks/gpu.py").read_text("utf-8")).body
    assigned = {ast.unparse(node.targets[0]): node.value for node in body if isinstance(node, ast.Assign)}
    return ast.literal_eval(assigned["PARTS"])


def _benchmark(name: str, part: str, tiny: bool, *flags: str) -> tuple[str, ...]:
    given = ("--parts", part, "--rounds", "2" if tiny else "20", "--out", str(WORK / f"results/{name}.json"))
    return (sys.executable, "benchmarks/gpu.py", *given, *flags, *["--tiny"] * tiny)


def _joined(*paths: str | Path) -> str:
    return os.pathsep.join(str(path) for path in paths if str(path))


def _save(out: Path, outcomes: list[Outcome]) -> None:
    """The summary, and what the benchmark's parts have written by now."""
    (out / "summary.txt").write_text("".join(f"{outcome}\n" for outcome in outcomes), "utf-8")
    records: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        with suppress(FileNotFoundError, ValueError):  # it wrote nothing, or was killed while it wrote
            records[outcome.name] = json.loads((WORK / f"results/{outcome.name}.json").read_text("utf-8"))
    compiled = records.pop(COMPILED, None)
    for name, chosen in (("gpu_compiled", [compiled] if compiled else []), ("gpu", list(records.values()))):
        if chosen:
            (out / f"{name}.json").write_text(json.dumps(merged(chosen)) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
