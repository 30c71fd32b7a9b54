# SPDX-License-Identifier: Apache-2.0
"""Everything that depends on vLLM's version: patches of vLLM, and differences between releases.

Served: 0.32 and 0.33. Each patch says which releases it serves and when it can go.
"""

import atexit
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_metal.log import get_logger

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

logger = get_logger(__name__)

SERVED_VLLM = ((0, 32), (0, 33))

_PATCHED = "_vllm_metal_patched"
_RELIEF = "_vllm_metal_relief"  # a scheduler's SchedulerRelief
_ENGINE_SHUTDOWN_SECONDS = 15.0  # for the engine's process to end by itself
_CLIENT_SECONDS = 5  # for clients to take what was made for them


def vllm_release() -> tuple[int, int]:
    """Return major and minor version of the installed vLLM."""
    import vllm
    from packaging.version import Version

    release = Version(vllm.__version__).release
    return release[0], release[1]


def apply_patches() -> None:
    """Patch vLLM, once a process and only when it runs on our platform."""
    from vllm.platforms import current_platform

    from vllm_metal.platform import MetalPlatform

    if not isinstance(current_platform, MetalPlatform):
        return
    if vllm_release() not in SERVED_VLLM:
        import vllm

        from vllm_metal.log import get_logger

        get_logger(__name__).warning(
            "vLLM %s is not a release that vLLM Metal was made for (%s).",
            vllm.__version__,
            ", ".join(f"{major}.{minor}" for major, minor in SERVED_VLLM),
        )
    _patch_engine_args()
    _patch_scheduler()
    _patch_memory_pressure()
    _patch_shutdown()
    _patch_sockets()


def _patch_engine_args() -> None:
    """Serves 0.32 and 0.33. Goes when platforms can set defaults of engine arguments.

    Prefix caching: vLLM turns it on by itself, and once it has, nothing tells that from a user's
    wish. Only the engine arguments know.

    Names of models: with ModelScope, and offline, they become folders before vLLM looks for the
    files one by one, each in a cache of its own. What a hub answers is told in one message.

    Code of models: the core computes what it knows by itself, so that nothing is gained by running
    it, and vLLM and transformers would.

    Batch sizes: vLLM goes by the amount of memory, and unified memory puts a Mac into the class
    of an H100. Every device gets vLLM's defaults for smaller ones.
    """
    from vllm.engine import arg_utils
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    from vllm_metal import hub, hub_errors, prefix_cache_settings

    if hasattr(EngineArgs, _PATCHED):
        return
    create_engine_config = EngineArgs.create_engine_config

    @functools.wraps(create_engine_config)
    def prepare_and_create(self: EngineArgs, *args: Any, **kwargs: Any) -> Any:
        prefix_cache_settings.settle(self)
        if self.trust_remote_code:
            logger.warning("--trust-remote-code is ignored: no code of a model is ever run.")
            self.trust_remote_code = False
        with hub_errors.readable_errors(self.model, self.revision):
            hub.localize(self)
            return create_engine_config(self, *args, **kwargs)

    def get_batch_defaults(_cls: type, _world_size: int) -> tuple[dict, dict]:
        max_num_batched_tokens = {
            UsageContext.LLM_CLASS: 8192,
            UsageContext.OPENAI_API_SERVER: 2048,
        }
        max_num_seqs = {UsageContext.LLM_CLASS: 256, UsageContext.OPENAI_API_SERVER: 256}
        return max_num_batched_tokens, max_num_seqs

    def keep_name(model: str, _revision: str | None = None) -> str:
        return model  # offline, vLLM would look for it without --download-dir

    arg_utils.get_model_path = keep_name
    EngineArgs.create_engine_config = prepare_and_create
    EngineArgs.get_batch_defaults = classmethod(get_batch_defaults)
    setattr(EngineArgs, _PATCHED, True)


def _patch_scheduler() -> None:
    """Serves 0.32 and 0.33. Goes when vLLM ends a request whose logits hold NaN by itself, and
    resets a connector that is the prefix cache with the prefix cache.

    vLLM lets a worker report NaN by request (`num_nans_in_logits`) and only counts them. The
    scheduler does end requests whose grammar failed to compile, with an error and in the same
    step; requests with NaN join those.

    A reset of the prefix cache leaves out connectors unless it is asked for them (of the server:
    `reset_external`). Ours is all there is to reset, and can be while requests run.
    """
    from vllm.v1.core.sched.scheduler import Scheduler

    if hasattr(Scheduler, _PATCHED):
        return
    update_from_output = Scheduler.update_from_output
    reset_prefix_cache = Scheduler.reset_prefix_cache

    @functools.wraps(update_from_output)
    def end_requests_with_nans(
        self: Scheduler,
        scheduler_output: "SchedulerOutput",
        model_runner_output: "ModelRunnerOutput",
    ) -> Any:
        counts = model_runner_output.num_nans_in_logits or {}
        if failed := [request_id for request_id, count in counts.items() if count > 0]:
            # Requests that ended meanwhile are skipped by the scheduler.
            self.grammar_compile_error_reqs.update(failed)
        return update_from_output(self, scheduler_output, model_runner_output)

    @functools.wraps(reset_prefix_cache)
    def reset_ours_too(
        self: Scheduler, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        if self.connector is None:  # ours is the only one that is not refused
            return reset_prefix_cache(self, reset_running_requests, reset_connector)
        if reset_running_requests:
            return reset_prefix_cache(self, True, True)
        return self.reset_connector_cache()

    Scheduler.update_from_output = end_requests_with_nans
    Scheduler.reset_prefix_cache = reset_ours_too
    setattr(Scheduler, _PATCHED, True)


def _patch_memory_pressure() -> None:
    """Serves 0.32 and 0.33. Goes when vLLM asks the platform how much it may do.

    The scheduler preempts requests and holds back those that wait. An engine's process that has
    nothing to do, and so does not schedule, is woken up and frees its KV cache too. The API server
    refuses new requests as it does when its queue is full.
    """
    from vllm.exceptions import QueueOverflowError
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine import EngineCoreRequestType
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core import EngineCoreProc

    from vllm_metal.memory_pressure import Relief, SchedulerRelief, process_watch

    if hasattr(AsyncLLM, _PATCHED):
        return
    schedule, check_admission = Scheduler.schedule, AsyncLLM.check_admission
    run, handle = EngineCoreProc.run_busy_loop, EngineCoreProc._handle_client_request

    def relieve(scheduler: Scheduler) -> SchedulerRelief:
        relief = scheduler.__dict__.get(_RELIEF)
        if relief is None:
            relief = scheduler.__dict__[_RELIEF] = SchedulerRelief(process_watch())
        relief.apply(scheduler)
        return relief

    @functools.wraps(schedule)
    def relieve_and_schedule(self: Scheduler, *args: Any, **kwargs: Any) -> "SchedulerOutput":
        relieve(self)
        return schedule(self, *args, **kwargs)

    @functools.wraps(run)
    def run_and_wake_up(self: EngineCoreProc) -> Any:
        wake_up = (EngineCoreRequestType.WAKEUP, None)
        process_watch().tell(lambda: self.input_queue.put_nowait(wake_up))
        return run(self)

    @functools.wraps(handle)
    def relieve_and_handle(
        self: EngineCoreProc, request_type: EngineCoreRequestType, request: Any
    ) -> None:
        handle(self, request_type, request)
        if request_type != EngineCoreRequestType.WAKEUP:
            return
        if relieve(self.scheduler).forgets_prefixes() and not self.has_work():
            self.model_executor.collective_rpc("discard", args=(("kv_cache",),))

    @functools.wraps(check_admission)
    def check_memory_and_admission(self: AsyncLLM, *args: Any, **kwargs: Any) -> None:
        if process_watch().stage >= Relief.REFUSE:
            raise QueueOverflowError
        check_admission(self, *args, **kwargs)

    Scheduler.schedule = relieve_and_schedule
    EngineCoreProc.run_busy_loop = run_and_wake_up
    EngineCoreProc._handle_client_request = relieve_and_handle
    AsyncLLM.check_admission = check_memory_and_admission
    setattr(AsyncLLM, _PATCHED, True)


def _patch_shutdown() -> None:
    """Serves 0.32 and 0.33. Goes when vLLM ends everything that waits for the engine by itself.

    On a signal vLLM kills the engine's process at once unless it runs on ROCm. The answers that
    were being made are never told of their end, so the server waits for clients that wait for it.
    The process gets time to end by itself, which ends its requests. Those that it had not read
    yet, and all if it hangs, are ended here. Clients that do not take their answers get a moment,
    unless the server was told how long. A server whose engine died ends with an error instead of
    the exit code 0, which tells whoever supervises it that all is well.
    """
    from vllm.entrypoints.launchers.launcher import NoSignalServer
    from vllm.v1.engine import utils
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError

    if hasattr(utils, _PATCHED):
        return
    get_timeout = utils.get_engine_process_shutdown_timeout
    shutdown, shutdown_server = AsyncLLM.shutdown, NoSignalServer.shutdown
    serve = NoSignalServer.serve

    @functools.wraps(get_timeout)
    def leave_time_to_end(
        request_timeout: float | None, process_timeout: float | None
    ) -> float | None:
        if request_timeout == 0 and process_timeout == 0:
            return _ENGINE_SHUTDOWN_SECONDS
        return get_timeout(request_timeout, process_timeout)

    @functools.wraps(shutdown)
    def shutdown_and_end_requests(self: AsyncLLM, timeout: float | None = None) -> None:
        shutdown(self, timeout)
        handler = getattr(self, "output_handler", None)
        if handler is not None and not handler.get_loop().is_closed():
            handler.get_loop().call_soon_threadsafe(
                self.output_processor.propagate_error, EngineDeadError()
            )

    @functools.wraps(shutdown_server)
    async def shutdown_server_in_time(self: NoSignalServer, *args: Any, **kwargs: Any) -> None:
        if self.config.timeout_graceful_shutdown is None:
            self.config.timeout_graceful_shutdown = _CLIENT_SECONDS
        await shutdown_server(self, *args, **kwargs)

    @functools.wraps(serve)
    async def serve_until_engine_dies(self: NoSignalServer, *args: Any, **kwargs: Any) -> None:
        engine = getattr(self.config.app.state, "engine_client", None)  # gone at the end
        await serve(self, *args, **kwargs)  # cancelled by a signal
        if engine is not None and engine.errored and not engine.is_running:
            raise EngineDeadError

    utils.get_engine_process_shutdown_timeout = leave_time_to_end
    NoSignalServer.shutdown = shutdown_server_in_time
    NoSignalServer.serve = serve_until_engine_dies
    AsyncLLM.shutdown = shutdown_and_end_requests
    setattr(utils, _PATCHED, True)


def _patch_sockets() -> None:
    """Serves 0.32 and 0.33. Goes when vLLM removes the files of its sockets.

    Between server and engine, in the folder for temporary files: those of an engine that is killed
    stay there.
    """
    from vllm.utils import network_utils
    from vllm.v1 import utils
    from vllm.v1.engine import utils as engine_utils

    name = "get_open_zmq_ipc_path"
    make_path = getattr(network_utils, name)
    if hasattr(make_path, _PATCHED):
        return

    @functools.wraps(make_path)
    def make_path_removed_at_exit() -> str:
        path: str = make_path()
        atexit.register(Path(path.removeprefix("ipc://")).unlink, missing_ok=True)
        return path

    setattr(make_path_removed_at_exit, _PATCHED, True)
    for module in (network_utils, utils, engine_utils):
        if hasattr(module, name):
            setattr(module, name, make_path_removed_at_exit)
