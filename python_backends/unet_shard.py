"""The models `unet_shard0`, `unet_shard1` …: each runs whole requests, whose denoisers ask how far they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
import triton_python_backend_utils as pb_utils

from .backend.compute import ComputeSettings
from .backend.memory import keep_freed_memory
from .backend.model import Model
from .backend.responses import answer_each, as_request_error
from .backend.settings import ModelSettings, input_text, text_tensor
from .backend.tensors import input_tensor, output_tensor
from .common.errors import to_report
from .common.processes import parent_name
from .controlnets.calls import ControlNetCalls, Endpoint
from .controlnets.local import LocalControlNet
from .engine.adapter_services import AdapterServices
from .engine.desk import Desk
from .engine.engine import Engine
from .engine.evaluator import Evaluator
from .engine.messages import (
    Borrow,
    Cancel,
    Claim,
    Evaluate,
    Evaluation,
    Lent,
    Poll,
    Quote,
    Submit,
    Submitted,
    message_from_json,
    to_json,
)
from .engine.new_runs import NewRuns
from .engine.new_token_runs import TokenRuns, Transformers
from .engine.peers import Peers
from .engine.schedulers import NOISE_SCHEDULE, is_over_betas
from .engine.shard_metrics import ShardMetrics
from .engine.step_times import StepTimes
from .engine.template_store import ENTRIES, TemplateStore
from .engine.template_tiers import TemplateMetrics, template_tiers
from .engine.unet_calls import UNetCall
from .lora.patching.resident import ResidentLoras, device_bytes
from .networks.digests import files_digest
from .networks.kept_embeddings import KeptEmbeddings
from .networks.kept_moments import KeptMoments
from .networks.memory_shares import beside_bytes
from .networks.unet import UNet
from .shared_memory.host_cache import EvictedError, host_cache_directory
from .shared_memory.pictures import Pictures

if TYPE_CHECKING:
    from collections.abc import Mapping


class TritonPythonModel(Model):
    """One UNet on one device, and the engine that runs requests on it; `respond` carries messages and holds none."""

    computes = True

    def load(self, args: Mapping[str, str]) -> None:
        """Loads the UNet, which warms itself up, and starts the engine."""
        settings = ModelSettings.from_triton(args)
        compute, parameters = ComputeSettings.from_settings(settings), settings.parameters
        most_rows, patches = 2 * int(parameters["places"]), parameters["patches"] == "1"
        unet = UNet(compute.checkpoint, compute.device, compute.dtype, compute.runtime, most_rows, patches)
        keep_freed_memory()
        embeddings = KeptEmbeddings()
        adapters = AdapterServices(
            parameters["text_encoder"],
            parameters["lora_store"],
            embeddings,
            uploads_ahead=compute.device.type == "cuda",
            timeout_s=float(parameters.get("lora_timeout_s", 300)),
        )
        scheduler_config = json.loads(parameters["scheduler_config"])
        token_runs = _token_runs(settings, unet, compute, scheduler_config)
        self._new_runs = NewRuns(
            compute.checkpoint,
            scheduler_config,
            compute.device,
            embeddings,
            KeptMoments(),
            Pictures(),
            adapters,
            token_runs,
            compute.runtime.fp8,
        )
        self._new_runs.warm_up(json.loads(parameters["schedulers"]))
        self._tensor_names = [tensor["name"] for tensor in settings.config["input"] if tensor["name"] != "MESSAGE"]
        times = StepTimes()
        loras = ResidentLoras(unet.patcher, host_cache_directory(), unet.beside, device_bytes(compute.device))
        metrics = ShardMetrics(parameters["pipeline"], settings.name, settings.instance)
        evaluator = Evaluator(settings.name, unet, loras, _controlnet_calls(settings), metrics)
        height, width = compute.checkpoint.default_size
        for rows, seconds in evaluator.measure(compute.checkpoint, patches).items():
            times.guess(rows * height * width, seconds)
        self._engine = Engine(
            settings.name,
            evaluator,
            Peers(settings.name, [name for name in parameters["peers"].split(",") if name]),
            Desk(int(parameters["places"]), times, longest=int(parameters["longest_line"])),
            times,
            adapters.count,
            self.pulse,
            metrics,
            float(parameters["controlnet_timeout_s"]),
            lambda work: evaluator.row_costs.weighed(work, token_runs.memory.free),
        )

    def respond(self, requests: list[Any]) -> list[Any]:
        """ANSWER for every MESSAGE."""
        return answer_each(requests, self._answer, "evaluation")

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()

    def _answer(self, request: Any) -> Any:
        match message_from_json(input_text(request, "MESSAGE")):
            case Submit() as message:
                return _response(self._submit(message))
            case Poll(runs):
                polled, latents = self._engine.poll(runs)
                flat = [output_tensor("LATENTS", torch.cat([each.flatten() for each in latents]))] if latents else []
                return _response(polled, *flat)
            case Cancel(runs):
                self._engine.forget(runs)
                return _response(Submitted())
            case Quote(work):
                return _response(self._engine.quote(work))
            case Claim() as message:
                return _response(self._engine.claim(message))
            case Borrow(home):
                return _response(Lent(self._engine.lend(home)))
            case Evaluate() as message:
                return self._evaluate(message, {name: input_tensor(request, name) for name in self._tensor_names})

    def _submit(self, message: Submit) -> Submitted:
        try:
            self._engine.submit(self._new_runs.make(message), message.again, message.sender)
        except EvictedError:
            return Submitted(missing=True)
        except Exception as error:  # noqa: BLE001  whatever a request brings is its denoiser's to tell
            if message.request.claim is not None:
                self._engine.forget([message.request.claim.id])
            return Submitted(error=to_report(as_request_error(error, "denoising")))
        return Submitted()

    def _evaluate(self, message: Evaluate, tensors: dict[str, torch.Tensor]) -> Any:
        call = UNetCall((), message.loras, message.ahead, message.controls, tensors, message.pixels)
        evaluated = self._engine.evaluate(message.home, call)
        if evaluated is None:
            return _response(Evaluation(refused=True))
        failures = {row: to_report(error) for row, error in evaluated.failures.items()}
        evaluation = Evaluation(evaluated.patch_ms, evaluated.beside, failures, evaluated.stale)
        return _response(evaluation, output_tensor("NOISE_PRED", evaluated.prediction.cpu()))


def _token_runs(
    settings: ModelSettings, unet: UNet, compute: ComputeSettings, scheduler_config: Mapping[str, Any]
) -> TokenRuns:
    """Mask-aware runs, and what is kept of the pictures that they edit."""
    parameters, stacks = settings.parameters, unet.stacks
    if stacks is None:
        return TokenRuns(None, 0)
    schedule = json.dumps({name: scheduler_config.get(name) for name in NOISE_SCHEDULE})
    train_timesteps = scheduler_config.get("num_train_timesteps", 1000)
    vae = files_digest(compute.checkpoint.path / "vae")
    known = Transformers(
        stacks.levels,
        stacks.widths,
        f"{ENTRIES} {unet.digest} {vae} {train_timesteps} {schedule}",
        train_timesteps,
        parent_name(),
        compute.dtype.itemsize,
    )
    host_bytes, disk_bytes = int(parameters["template_host_bytes"]), int(parameters["template_disk_bytes"])
    if not is_over_betas(scheduler_config):  # steps of other schedules cannot be told apart by their timesteps
        host_bytes = 0
    tiers = template_tiers(host_bytes, disk_bytes, settings.path("template_disk_directory"))
    count = TemplateMetrics(parameters["pipeline"])
    return TokenRuns(
        known, beside_bytes(compute.device), TemplateStore(tiers) if tiers else None, compute.device, count
    )


def _controlnet_calls(settings: ModelSettings) -> ControlNetCalls:
    """Calls to the ControlNets of this server, and to those that the parameter `controlnet_urls` says are elsewhere."""
    timeout_s = float(settings.parameters["controlnet_timeout_s"])
    urls = json.loads(settings.parameters["controlnet_urls"])

    def endpoint(name: str) -> Endpoint:
        if name not in urls:
            return LocalControlNet(name, timeout_s)
        from .controlnets.remote import RemoteControlNet  # needs gRPC, which a server without such ControlNets does not

        return RemoteControlNet(name, urls[name], timeout_s, Pictures().get)

    return ControlNetCalls(endpoint, timeout_s)


def _response(answer: Any, *tensors: Any) -> Any:
    return pb_utils.InferenceResponse([text_tensor("ANSWER", to_json(answer)), *tensors])
