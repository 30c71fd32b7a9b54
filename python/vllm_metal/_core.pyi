"""The C++ core of vLLM Metal. Only plain data, numpy and DLPack cross."""

from collections.abc import Callable, Sequence
import os


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
    Pick MLX's device by VLLM_MLX_DEVICE and describe it: type, backend, name, total_memory and available_memory in bytes. RuntimeError when gpu is asked for and there is none.
    """

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

class SamplingParams:
    """How one request's tokens are drawn."""

    def __init__(self, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, seed: int | None = None, num_logprobs: int | None = None) -> None: ...

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

def supported_architectures() -> list[str]:
    """Names that config.json may have in `architectures`."""

class ModelRunner:
    """A loaded model and its live requests."""

    def __init__(self, model_dir: str, config_json: str, dtype: str, *, progress: Callable[[int, int], None] | None = None) -> None:
        """
        Load a model. dtype: float32, float16 or bfloat16. progress(done_bytes, total_bytes) is called while reading.
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
    def last_step_nodes(self) -> int:
        """Graph nodes of the last step, if counted."""

    def keep_logits(self, enabled: bool) -> None: ...

    @property
    def last_logits(self) -> object:
        """
        Logits of the rows the last step drew from, float32 [n, vocab_size]; None unless kept.
        """

    def count_nodes(self, enabled: bool) -> None: ...

    def initialize_kv_cache(self, num_tokens: int, block_size: int) -> None:
        """Set how many tokens live requests may keep, in blocks of block_size."""

    def step(self, *, finished: Sequence[str], preempted: Sequence[str], new_requests: Sequence[tuple[str, Sequence[int], int, SamplingParams]], updates: Sequence[tuple[str, Sequence[int]]], scheduled: Sequence[tuple[str, int, int]]) -> StepOutput:
        """
        Compute one step and draw tokens; the GIL is released meanwhile.

        finished, preempted: request ids. new_requests: (id, token_ids, how many of them are output, SamplingParams). updates: (id, all token_ids). scheduled: (id, num_computed_tokens, num_scheduled_tokens).
        """

def memory_stats() -> dict:
    """MLX's memory in bytes: active, peak, cache."""
