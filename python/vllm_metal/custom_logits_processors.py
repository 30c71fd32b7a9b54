# SPDX-License-Identifier: Apache-2.0
"""Custom Python logits processors: loading them, and which requests they apply to."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.sample.logits_processor import (
    BUILTIN_LOGITS_PROCESSORS,
    LOGITSPROCS_GROUP,
    AdapterLogitsProcessor,
    BatchUpdate,
    LogitsProcessor,
    LogitsProcessors,
    build_logitsprocs,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams


class LogitsProcessorError(RuntimeError):
    """A custom logits processor failed; the text names it."""


class CustomLogitsProcessors:
    """The processors of --logits-processors and of entry points, together with vLLM's own."""

    @staticmethod
    def load(vllm_config: "VllmConfig") -> "CustomLogitsProcessors | None":
        """Load them; None without any.

        Raises ValueError or RuntimeError, naming the processor, for one that cannot be loaded.
        """
        refuse_for_second_model_runner(vllm_config)
        model_config = vllm_config.model_config
        processors = build_logitsprocs(
            vllm_config,
            torch.device("cpu"),
            is_pin_memory=False,
            is_pooling_model=model_config.runner_type == "pooling",
            custom_logitsprocs=tuple(model_config.logits_processors or ()),
        )
        if all(_is_builtin(processor) for processor in processors.all):
            return None
        return CustomLogitsProcessors(processors)

    def __init__(self, processors: LogitsProcessors) -> None:
        """Take what `build_logitsprocs` built."""
        custom = [processor for processor in processors.all if not _is_builtin(processor)]
        self._adapters = [_AskedOnce(p) for p in custom if _is_per_request(p)]
        self._apply_to_all = len(self._adapters) < len(custom)
        self.logitsprocs = LogitsProcessors(
            p if _is_builtin(p) else _Named(p) for p in processors.all
        )

    def apply_to(self, params: "SamplingParams", request_id: str) -> bool:
        """Ask whether any applies to a request; adapters go by this very object from then on.

        Raises LogitsProcessorError when an adapter fails.
        """
        try:
            answers = [adapter.ask(params, request_id) for adapter in self._adapters]
        except LogitsProcessorError:
            self.forget(params)
            raise
        return self._apply_to_all or any(answers)

    def forget(self, params: "SamplingParams") -> None:
        """Drop what adapters answered for a request."""
        for adapter in self._adapters:
            adapter.forget(params)


def refuse_for_second_model_runner(vllm_config: "VllmConfig") -> None:
    """Refuse custom processors that vLLM's front end would take for its second model runner.

    Those are another interface, made for that runner's own buffers on a device.
    """
    if not vllm_config.use_v2_model_runner:
        return
    names = [point.value for point in entry_points(group=LOGITSPROCS_GROUP)]
    names += [str(given) for given in vllm_config.model_config.logits_processors or ()]
    if names:
        raise ValueError(
            f"Custom logits processors need VLLM_USE_V2_MODEL_RUNNER=0: {', '.join(names)}."
        )


class _AskedOnce:
    """Answers for an adapter: it is asked once a request, and not whenever a row is added.

    A second answer would be a second processor, without what the first one may remember.
    """

    def __init__(self, adapter: AdapterLogitsProcessor) -> None:
        self._name = _name(adapter)
        self._new_req_logits_processor = adapter.new_req_logits_processor
        self._answers: dict[int, Any] = {}  # by identity of the parameters
        adapter.new_req_logits_processor = lambda params: self._answers[id(params)]

    def ask(self, params: "SamplingParams", request_id: str) -> bool:
        try:
            answer = self._new_req_logits_processor(params)
        except Exception as error:
            raise _failure(f"{self._name}, asked for request {request_id},", error) from error
        self._answers[id(params)] = answer
        return bool(answer)

    def forget(self, params: "SamplingParams") -> None:
        self._answers.pop(id(params), None)


class _Named(LogitsProcessor):
    """A custom processor whose failures carry its name."""

    def __init__(self, processor: LogitsProcessor) -> None:
        self._processor = processor
        self._name = _name(processor)

    def is_argmax_invariant(self) -> bool:
        return self._processor.is_argmax_invariant()

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        self._named(self._processor.update_state, batch_update)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        expected = logits.shape
        result = self._named(self._processor.apply, logits)
        if (shape := getattr(result, "shape", None)) != expected:
            raise LogitsProcessorError(
                f"The logits processor {self._name} must return logits of shape {list(expected)}, "
                f"got {type(result).__name__ if shape is None else list(shape)}."
            )
        return result

    def _named(self, call: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return call(argument)
        except Exception as error:
            raise _failure(f"{self._name}, in {call.__name__},", error) from error


def _name(processor: LogitsProcessor) -> str:
    return f"{type(processor).__module__}:{type(processor).__qualname__}"


def _failure(who: str, error: Exception) -> LogitsProcessorError:
    return LogitsProcessorError(
        f"The logits processor {who} raised {type(error).__name__}: {error}"
    )


def _is_builtin(processor: LogitsProcessor) -> bool:
    return type(processor) in BUILTIN_LOGITS_PROCESSORS


def _is_per_request(processor: LogitsProcessor) -> bool:
    """Whether it leaves requests alone for which `new_req_logits_processor` returns nothing."""
    return isinstance(processor, AdapterLogitsProcessor) and all(
        getattr(type(processor), name) is getattr(AdapterLogitsProcessor, name)
        for name in ("apply", "update_state", "_new_state")
    )
