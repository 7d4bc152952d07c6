"""Lays in a folder what a machine with a GPU and no network needs; runs where there is a network.

The committed project without the demo family's weights, wheels of what the machine lacks, and a server if wanted.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement
from rich.console import Console

from wheels import Wheels, read_present

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out/gpu_box"  # git ignores out/
PRESENT = Path(__file__).with_name("present.txt")
LEFT_OUT = ("export/demo/weights", "export/demo/controlnets", "export/demo/loras", "benchmarks/results")
TESTS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")
SERVER_FILES = ("nvidia_pytriton.libs/", "pytriton/tritonserver/bin/", "pytriton/tritonserver/backends/")
UNUSED = ("__pycache__", "site-packages", "test", "tests", "idlelib", "tkinter", "ensurepip", "config-3*")
LIMIT_MIB = 64
console = Console(soft_wrap=True)


def main(
    commit: Annotated[str, typer.Option(help="Of the project.")] = "HEAD",
    project: Annotated[bool, typer.Option(help="Without it where the checkout is carried as a whole.")] = True,
    present: Annotated[Path, typer.Option(help="`pip freeze` of the machine.")] = PRESENT,
    python: Annotated[str, typer.Option(help="The machine's.")] = "3.12",
    server: Annotated[Path | None, typer.Option(help="Prefix of a Python to carry, with a Triton server.")] = None,
) -> None:
    """Make out/gpu_box anew; the exit code is 1 if it is too large."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    (OUT / "commit.txt").write_bytes(_git("log", "-1", "--format=%H %s", commit))
    if project:
        archive = _git("archive", commit, "--", ".", *(f":(exclude){path}" for path in LEFT_OUT))
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(OUT / "project", filter="data")
    given = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {name: list(map(Requirement, texts)) for name, texts in given["optional-dependencies"].items()}
    needed = [*map(Requirement, given["dependencies"]), *extras["server"], *extras["kernels"]]
    needed += [each for each in extras["dev"] if each.name in TESTS]
    (client,) = (each for each in needed if each.name == "tritonclient")  # tests without a server do without
    has = read_present(present.read_text("utf-8"))
    with console.status("wheels"):
        wheels = Wheels(OUT / "wheels", has, python)
        for requirement in needed:
            if requirement is not client:
                wheels.add(requirement)
    if server is not None:
        has.pop("numpy", None)  # the server's Python backend needs an older one
        with console.status("server: minutes"), tempfile.TemporaryDirectory() as directory:
            wheels = Wheels(Path(directory) / "wheels", has, python)
            for requirement in extras["tritonserver"]:
                (wheels.fetch if requirement.name == "nvidia-pytriton" else wheels.add)(requirement)
            wheels.add(Requirement(f"tritonclient[grpc]{client.specifier}"), ("any",))
            _pack(wheels, server, Path(directory) / "pack")
    carried = [path for path in OUT.rglob("*") if path.is_file()]
    if not project:
        carried += [ROOT / name for name in _git("ls-files", "-z").decode().split("\0")[:-1]]
    mib = sum(path.stat().st_size for path in carried) / (1 << 20)
    console.print(*sorted(path.name for path in OUT.glob("*/*.whl")))
    console.print(f"{mib:.1f} MiB in {OUT}{'' if project else ' and git'}; wanted: at most {LIMIT_MIB}")
    raise typer.Exit(int(mib > LIMIT_MIB))


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def _pack(wheels: Wheels, prefix: Path, work: Path) -> None:
    """Wheels for the server, unpacked, and a Python with the headers that kernels are compiled with."""
    kept = (*SERVER_FILES, f"pytriton/tritonserver/python_backend_stubs/{wheels.python}/")
    for wheel in wheels.directory.iterdir():
        whole = not wheel.name.startswith("nvidia_pytriton")
        with zipfile.ZipFile(wheel) as files:
            for name in files.namelist():
                if "/tests/" not in name and "/libpython" not in name and (whole or name.startswith(kept)):
                    files.extract(name, work / "packages")
    server = work / "packages/pytriton/tritonserver"
    (server.parent / "__init__.py").touch()
    for program in (server / "bin/tritonserver", *server.glob("python_backend_stubs/*/*")):
        program.chmod(0o755)
    name, to = f"python{wheels.python}", work / "python"
    for part in (f"lib/{name}", f"include/{name}"):
        shutil.copytree(prefix / part, to / part, ignore=shutil.ignore_patterns(*UNUSED))
    (to / "bin").mkdir()
    shutil.copy2(prefix / "bin" / name, to / "bin/python3")
    library = shutil.copy2(prefix / f"lib/lib{name}.so.1.0", to / "lib")
    subprocess.run(["strip", "--strip-unneeded", library, *(to / "lib").glob("*/lib-dynload/*.so")], check=True)
    with tarfile.open(OUT / "server.tar.xz", "w:xz") as files:
        files.add(work, ".")


if __name__ == "__main__":
    typer.run(main)
