"""`swiftdiffusion`: the one command, composed of the packages' subcommands.

Command modules import what is heavy inside their functions, so that the client commands work without torch installed.
"""

from pathlib import Path

import typer

from ..export.command import export
from ..export.onnx.command import export_onnx
from ..export.profile_command import profile_lora
from ..export.tensorrt.build_command import build_engines
from ..export.tensorrt.plan_command import plan_models
from ..export.tensorrt.verify_command import verify_engines
from ..python_backends.launcher.doctor_command import doctor
from ..python_backends.launcher.drain_command import drain_command
from ..python_backends.launcher.probe_command import probe
from ..python_backends.launcher.serve_command import serve
from ..python_backends.launcher.watch_command import watch
from .commands.generate_command import generate
from .commands.top_command import top
from .gateway.command import gateway
from .load.lora_variants import lora_variants
from .load.replay_command import replay_trace
from .load.trace_command import trace
from .perf.command import perf
from .perf.lora_mix import lora_mix


def catalogue_names(directory: Path) -> list[str]:
    """The names of a LoRA catalogue, for a command that knows only the wire contract."""
    from ..python_backends.lora.loading.catalogue import Catalogue

    return Catalogue(directory).names()


app = typer.Typer(
    name="swiftdiffusion",
    help="Stable Diffusion XL and 1.5 with ControlNets and LoRAs on Triton.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)

app.command()(serve)
app.command()(watch)
app.command()(probe)
app.command("drain")(drain_command)
app.command()(generate)
app.command()(gateway)
app.command()(top)
app.command()(perf)
app.command(context_settings={"obj": catalogue_names})(lora_mix)
app.command()(trace)
app.command("replay", context_settings={"obj": catalogue_names})(replay_trace)
app.command()(lora_variants)
app.command()(export)
app.command()(export_onnx)
app.command()(profile_lora)
app.command()(build_engines)
app.command()(verify_engines)
app.command()(plan_models)
app.command()(doctor)
