# SPDX-License-Identifier: Apache-2.0
"""llama.cpp through its C API: none of the Python layer above it is counted."""

from collections.abc import Iterator
from importlib.metadata import version

import child
import llama_cpp
import numpy as np

LARGEST_BATCH = 512


def main() -> None:
    settings = child.settings()
    context = new_context(settings)
    vocab_size = llama_cpp.llama_vocab_n_tokens(
        llama_cpp.llama_model_get_vocab(llama_cpp.llama_get_model(context))
    )

    def next_token(token_ids: list[int]) -> int:
        """Evaluate tokens in one batch; logits are computed for the last of them only."""
        array = (llama_cpp.llama_token * len(token_ids))(*token_ids)
        status = llama_cpp.llama_decode(
            context, llama_cpp.llama_batch_get_one(array, len(token_ids))
        )
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, (vocab_size,))))

    def generate(prompt: list[int], new_tokens: int) -> Iterator[int]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        token = next_token(prompt)
        yield token
        for _ in range(new_tokens - 1):
            token = next_token([token])
            yield token

    features = llama_cpp.llama_print_system_info().decode()
    versions = {"llama-cpp-python": version("llama-cpp-python"), "llama.cpp built for": features}
    child.serve(versions, child.timed(generate))


def new_context(settings: dict) -> llama_cpp.llama_context_p:
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        settings["gguf"].encode(), llama_cpp.llama_model_default_params()
    )
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = settings["context"]
    params.n_batch = params.n_ubatch = LARGEST_BATCH
    params.n_threads = params.n_threads_batch = settings["threads"]
    params.flash_attn_type = (
        llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if settings["flash_attention"]
        else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    context = llama_cpp.llama_init_from_model(model, params) if model else None
    if not context:
        raise RuntimeError(f"llama.cpp could not load {settings['gguf']}")
    return context


main()
