"""The C++ core of vLLM Metal. Only plain data, numpy and DLPack cross."""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Annotated

import numpy
from numpy.typing import NDArray


__version__: str

mlx_version: str = '0.32.4'

def set_log_sink(callback: object | None) -> None:
    """
    Hand messages of the core to callback(level, text); level 0 is debug, 1 info, 2 warning. None silences.
    """

def environment() -> list:
    """
    The environment variables: name, value, default, meaning, is_set. ValueError names a bad one.
    """

def device_info() -> dict:
    """
    Pick MLX's device by VLLM_MLX_DEVICE and describe it: type, backend, name, and in bytes total_memory, available_memory and working_set, what it recommends to use at most. RuntimeError when gpu is asked for and there is none.
    """

class MemoryPlan:
    """
    How memory is divided between model, activations and KV cache, in bytes.
    """

    @property
    def basis(self) -> str:
        """The option or variable that decided."""

    @property
    def kv_cache(self) -> int: ...

    @property
    def prefix_cache(self) -> int: ...

    @property
    def margin(self) -> int: ...

    @property
    def memory_limit(self) -> int:
        """Of all of it."""

    @property
    def cache_limit(self) -> int:
        """Of what MLX keeps for reuse."""

    @property
    def wired_limit(self) -> int:
        """Of what stays resident on Metal."""

    def table(self) -> str:
        """Some lines for the log."""

def plan_memory(*, total: int, available: int, working_set: int, model: int, activations: int, block_bytes: int, block_size: int, max_model_len: int, shortens: bool = False, num_blocks: int | None = None, kv_cache_bytes: int | None = None, utilization: float | None = None, prefix_cache: bool = False) -> MemoryPlan:
    """
    Divide memory by what is asked for, the first that is given: num_blocks, kv_cache_bytes, VLLM_METAL_MEMORY_FRACTION, utilization; else as little as one sequence needs, which may be cut if it `shortens`. A prefix_cache gets VLLM_METAL_PREFIX_CACHE_FRACTION of the working set. ValueError names a wish that cannot be, RuntimeError all figures where the memory does not suffice.
    """

def capture_metal(path: str | None) -> None:
    """Record the GPU's work into a .gputrace, or with None stop. Metal only."""

def memory_pressure() -> str:
    """How short of memory the system is: "normal", "warning" or "critical"."""

def return_unused_memory() -> None:
    """Give back to the system what is kept for reuse."""

def apply_memory_limits(plan: MemoryPlan) -> None:
    """Set MLX's limits."""

def release_memory_limits() -> None:
    """Set MLX's limits back, with nothing wired and nothing kept for reuse."""

class GgufImport:
    """A GGUF file of a llama model on its way into MLX's community format."""

    def __init__(self, path: str | os.PathLike) -> None:
        """
        Read and check everything but the tensors' data. ValueError names the file and what is wrong with it or not supported.
        """

    @property
    def metadata(self) -> dict:
        """Metadata values by key; arrays are lists."""

    @property
    def model(self) -> dict:
        """Hyperparameters under the names of Hugging Face's LlamaConfig."""

    @property
    def linear_bits(self) -> dict:
        """
        Bits of the weight of every embedding and linear layer; 0: not quantised.
        """

    @property
    def output_names(self) -> list[str]:
        """Names of the tensors that write() stores."""

    @property
    def output_bytes(self) -> int:
        """Bytes of all tensors written."""

    def write(self, path: str | os.PathLike, progress: object | None = None) -> None:
        """
        Write the safetensors file `path`, which must not exist, and call progress(done, total) in bytes after each tensor. Leaves no file when it fails.
        """

GGML_GROUP_SIZE: int = 32

def to_mlx(tensor: object) -> object:
    """
    Hand a tensor to MLX: any object in host memory that speaks DLPack. MLX adopts the memory where it can (Metal, contiguous, whole pages) and else copies it once. Returns what MLX holds, which speaks DLPack, read-only. ValueError names a dtype or device that is not supported.
    """

class SamplingParams:
    """How one request's tokens are drawn."""

    def __init__(self, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0, seed: int | None = None, presence_penalty: float = 0.0, frequency_penalty: float = 0.0, repetition_penalty: float = 1.0, logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = [], allowed_token_ids: Sequence[int] | None = None, bad_words_token_ids: Sequence[Sequence[int]] = [], min_tokens: int = 0, all_stop_token_ids: Sequence[int] = [], has_grammar: bool = False, thinking_token_budget: int | None = None, num_logprobs: int | None = None, logprob_token_ids: Sequence[int] = [], num_prompt_logprobs: int | None = None, prompt_logprob_token_ids: Sequence[int] = [], prompt_logprob_ids_per_row: int = 0, prompt_logprob_start: int = 0) -> None:
        """
        Meanings and defaults of vLLM's SamplingParams.

        num_logprobs, num_prompt_logprobs: -1 is the whole vocabulary. prompt_logprob_token_ids: row by row, prompt_logprob_ids_per_row each, -1 for none. Raises ValueError naming a parameter that is out of its range.
        """

    @property
    def temperature(self) -> float: ...

    @property
    def top_p(self) -> float: ...

    @property
    def top_k(self) -> int: ...

    @property
    def min_p(self) -> float: ...

    @property
    def seed(self) -> int | None: ...

    @property
    def presence_penalty(self) -> float: ...

    @property
    def frequency_penalty(self) -> float: ...

    @property
    def repetition_penalty(self) -> float: ...

    @property
    def logit_bias(self) -> list[tuple[int, float]]: ...

    @property
    def allowed_token_ids(self) -> list[int] | None: ...

    @property
    def bad_words_token_ids(self) -> list[list[int]]: ...

    @property
    def min_tokens(self) -> int: ...

    @property
    def all_stop_token_ids(self) -> list[int]: ...

    @property
    def has_grammar(self) -> bool: ...

    @property
    def thinking_token_budget(self) -> int | None: ...

    @property
    def num_logprobs(self) -> int | None: ...

    @property
    def logprob_token_ids(self) -> list[int]: ...

    @property
    def num_prompt_logprobs(self) -> int | None: ...

    @property
    def prompt_logprob_token_ids(self) -> list[int]: ...

    @property
    def prompt_logprob_ids_per_row(self) -> int: ...

    @property
    def prompt_logprob_start(self) -> int: ...

class SamplerConfig:
    """What sampling knows of the model and the engine."""

    def __init__(self, vocab_size: int, *, logprobs_mode: str = 'raw_logprobs', reasoning_start_token_ids: Sequence[int] = [], reasoning_end_token_ids: Sequence[int] = [], natural_reasoning_end_token_ids: Sequence[int] = []) -> None:
        """
        logprobs_mode: raw_logprobs, raw_logits, processed_logprobs or processed_logits. The reasoning ids mark what a thinking_token_budget limits; the end is what is forced, the natural end what the model writes (the same unless given).
        """

    @property
    def vocab_size(self) -> int: ...

class SamplingState:
    """One request as sampling sees it."""

    def __init__(self, params: SamplingParams, seed: int, config: SamplerConfig, token_ids: Sequence[int] = [], num_output_tokens: int = 0) -> None:
        """
        token_ids: prompt and output so far, the last num_output_tokens of them output. Raises ValueError for ids outside of the vocabulary.
        """

    @property
    def num_output_tokens(self) -> int: ...

    def append(self, token_id: int) -> None:
        """Note a token generated elsewhere."""

def sample(config: SamplerConfig, logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], states: Sequence[SamplingState], bitmask: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None = None) -> tuple:
    """
    Draw a token a row and append it to the row's state, as a step does.

    logits: float32 [n, vocab_size], read in place; states: n different ones; bitmask: int32 [n, ceil(vocab_size / 32)], the tokens that grammars allow.
    Returns (token_ids int32 [n], logprobs): -1 where no token could be drawn; None or (token_ids [n, k], scores [n, k], ranks [n]), column 0 the drawn token.
    """

class PrefixIndex:
    """
    Which blocks of tokens the prefix cache of one loaded model holds, and where. The hashes of a prompt's blocks are a chain: each depends on all before it.
    """

    def __init__(self, num_blocks: int) -> None: ...

    @property
    def num_blocks(self) -> int: ...

    def __len__(self) -> int:
        """Blocks held."""

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Places of the longest beginning of the chain that is held."""

    def save(self, hashes: Sequence[bytes]) -> tuple[int, list[int]]:
        """
        Take the chain in. Returns how many of its blocks were held, and places for those after them, as far as there is room.
        """

    def begin_step(self) -> None:
        """
        What is matched or saved between two calls keeps its place until the second.
        """

    def clear(self) -> None: ...

class PrefixCacheInput:
    """What the prefix cache does in a step; see `ModelRunner.launch`."""

    def __init__(self, *, clear: bool = False, saves_of_ended: Sequence[tuple[str, int, Sequence[int]]] = [], loads: Sequence[tuple[str, int, Sequence[int]]] = [], saves_of_scheduled: Sequence[tuple[str, int, Sequence[int]]] = []) -> None:
        """
        In this order: clear forgets all and frees the memory; saves_of_ended are of requests that are finished or preempted; loads of scheduled ones, whose computed tokens they are; saves_of_scheduled of what is computed once the step is. Each (request id, index of the first of its blocks, blocks of the prefix cache).
        """

class StepOutput:
    """What a step drew."""

    @property
    def token_ids(self) -> list:
        """For each scheduled request a list of none or one token."""

    @property
    def failed(self) -> list:
        """Indexes of scheduled requests whose logits held NaN."""

    @property
    def logprobs(self) -> object:
        """
        None, or (token_ids [n, k], logprobs [n, k], ranks [n], offsets): one row a token drawn, column 0 the token itself; offsets[i] rows come before scheduled request i.
        """

    @property
    def prompt_logprobs(self) -> list:
        """
        Of each prompt that this step completed: (index of the scheduled request, None or (token_ids, logprobs, ranks) with a row a token from the second on, None or the scores of prompt_logprob_token_ids).
        """

    @property
    def idle_ms(self) -> float:
        """Nothing to compute between the step before and the launch of this one."""

    @property
    def forward_ms(self) -> float:
        """Until the logits were there."""

    @property
    def sampling_ms(self) -> float: ...

class PendingOutput:
    """The output of a step that may still run."""

    def wait(self) -> StepOutput:
        """Wait for the StepOutput; raises what went wrong in drawing."""

PAGED_BLOCK_SIZES: tuple = (8, 16, 32, 64, 128)

def supported_architectures() -> list[str]:
    """Names that config.json may have in `architectures`."""

def check_weight_files(model_dir: str, *, read_pickle: Callable[[str], dict] | None = None) -> None:
    """
    Read the headers of a model's weight files, none of its tensors. ValueError names the file and what is wrong with it; RuntimeError when one cannot be read.
    """

class ModelRunner:
    """A loaded model and its live requests."""

    def __init__(self, model_dir: str, config_json: str, dtype: str, *, progress: Callable[[int, int], None] | None = None, read_pickle: Callable[[str], dict] | None = None, logprobs_mode: str = 'raw_logprobs', seed: int | None = None, reasoning_start_token_ids: Sequence[int] = [], reasoning_end_token_ids: Sequence[int] = [], natural_reasoning_end_token_ids: Sequence[int] = []) -> None:
        """
        Load a model. dtype: float32, float16 or bfloat16. progress(done_bytes, total_bytes) is called while reading. read_pickle(path) returns the tensors by name of a file that torch.save wrote; without it such files are refused. Of seed the seeds of requests without one are made. The reasoning ids mark what a thinking_token_budget limits.
        """

    @property
    def num_layers(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def weight_bytes(self) -> int: ...

    @property
    def kv_cache_bytes(self) -> int: ...

    @property
    def prefix_cache_bytes(self) -> int: ...

    @property
    def last_step_nodes(self) -> int:
        """Graph nodes of the last step, if counted."""

    def keep_logits(self, enabled: bool) -> None: ...

    @property
    def last_logits(self) -> object:
        """
        Logits of the rows the last step drew from, float32 [n, vocab_size]; None unless kept.
        """

    def count_nodes(self, enabled: bool) -> None: ...

    def measure_activations(self, num_tokens: int, num_requests: int) -> int:
        """
        Run a step of that size on a cache of its own; returns the bytes in use besides weights and cache. Before initialize_kv_cache.
        """

    def initialize_kv_cache(self, num_tokens: int, block_size: int, num_prefix_cache_blocks: int = 0) -> None:
        """
        Set how many tokens live requests may keep, in blocks of block_size, and of how many of those a prefix cache is made.
        """

    def initialize_paged_kv_cache(self, num_blocks: int, block_size: int) -> None:
        """Make a pool of blocks that the caller hands out; see `launch`."""

    def block_ids(self, request_id: str) -> list[int]:
        """
        Blocks of a live request in the paged KV cache, in the order of its tokens.
        """

    def check_invariants(self, enabled: bool) -> None:
        """Have each step check what must hold of paged blocks."""

    def unload_weights(self) -> None:
        """Free the weights; every step fails until load_weights."""

    def load_weights(self, progress: Callable[[int, int], None] | None = None, *, read_pickle: Callable[[str], dict] | None = None) -> None:
        """Load them again from their files; raises what the constructor raises."""

    def discard_kv_cache(self) -> None:
        """
        Free the memory of the KV cache and of the prefix cache, which then holds nothing; live requests must be preempted or end.
        """

    def draw(self, *, grammar_ids: Sequence[str] = [], bitmask: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None = None, given: Sequence[tuple[int, int]] = []) -> PendingOutput:
        """
        Have the tokens of the launched step drawn, without waiting for them.

        grammar_ids: requests with a grammar; bitmask int32 [n, ceil(vocab_size / 32)]: the tokens it allows. given: (index of the scheduled request, token drawn by the caller).
        """

    def logits(self) -> object:
        """
        Wait for the logits that the launched step draws from: MLX's memory, read-only, through DLPack; float32 [n, vocab_size], one row for each of sampled_indices.
        """

    @property
    def sampled_indices(self) -> list[int]:
        """
        Indexes of the scheduled requests that the launched step draws tokens of.
        """

    def launch(self, *, finished: Sequence[str] = [], preempted: Sequence[str] = [], new_requests: Sequence[tuple[str, Sequence[int], int, SamplingParams]] = [], sessions: Sequence[tuple[str, Sequence[int], int, SamplingParams]] = [], updates: Sequence[tuple[str, Sequence[int]]] = [], scheduled: Sequence[tuple[str, int, int]] = [], blocks: Sequence[tuple[str, Sequence[int], bool]] = [], block_copies: Sequence[tuple[int, int]] = [], prefix_cache: PrefixCacheInput | None = None) -> None:
        """
        Start the forward pass of a step without waiting for it.

        finished, preempted: request ids. new_requests: (id, token_ids, how many of them are output, SamplingParams). sessions: likewise, of requests that keep their cache and have more input. updates: (id, all token_ids). scheduled: (id, num_computed_tokens, num_scheduled_tokens). Of the paged KV cache: blocks (id, block ids, whether they replace those before) and block_copies (source, target). Of the other: prefix_cache.
        """

    def step(self, *, finished: Sequence[str] = [], preempted: Sequence[str] = [], new_requests: Sequence[tuple[str, Sequence[int], int, SamplingParams]] = [], sessions: Sequence[tuple[str, Sequence[int], int, SamplingParams]] = [], updates: Sequence[tuple[str, Sequence[int]]] = [], scheduled: Sequence[tuple[str, int, int]] = [], blocks: Sequence[tuple[str, Sequence[int], bool]] = [], block_copies: Sequence[tuple[int, int]] = [], prefix_cache: PrefixCacheInput | None = None) -> StepOutput:
        """Launch a step, draw, and wait for its output."""

def memory_stats() -> dict:
    """MLX's memory in bytes: active, peak, cache."""

class SelfTest:
    """Checks of the core on this machine."""

    @property
    def names(self) -> list[str]: ...

    def run(self, name: str) -> dict:
        """
        Run a check: outcome ("passed", "failed" or "skipped"), worst_error and tolerance (None where nothing was compared), seconds, detail.
        """

def kernel_self_test(quick: bool, why_no_gpu: str | None = None) -> SelfTest:
    """
    Every op on every device against its fallback on the CPU in float32. With why_no_gpu, checks of the GPU are skipped for that reason.
    """

def write_self_test(max_bytes: int, why_no_gpu: str | None = None) -> SelfTest:
    """Writes into KV caches of up to max_bytes take no memory."""

def set_device_kernels_enabled(enabled: bool) -> None:
    """
    False sends ops that are built from now on to their fallbacks in MLX's ops. Set it before a model is loaded.
    """
