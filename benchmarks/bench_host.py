# SPDX-License-Identifier: Apache-2.0
"""Time of a decode step without its kernels: our core and mlx-lm, 30 layers, one thread each.

The model has the depth of SmolLM2-135M and next to no width (hidden size 64), so what remains is
the host's work: building the graph, walking it, and drawing tokens. Nodes a layer are the growth
of our graph from 10 to 30 layers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from machine import Machine
from measure import AT_MOST, Result, Row, arguments
from turns import Child, Engine, started, take_turns

LAYERS, FEWER_LAYERS = 30, 10
BATCHES = (1, 8, 32)
STEPS, WARM_UP = 60, 10
NUM_TOKENS = max(BATCHES) * 128

Times = dict[str, dict[str, list[float]]]  # by engine and part


def write_model(directory: Path, num_layers: int) -> str:
    """Write a random Llama: 9 query heads and 3 of keys and values, of 8 numbers each."""
    import mlx.core as mx

    hidden, intermediate, vocab, head_dim, heads, kv_heads = 64, 64, 256, 8, 9, 3
    layer = {
        "self_attn.q_proj": (heads * head_dim, hidden),
        "self_attn.k_proj": (kv_heads * head_dim, hidden),
        "self_attn.v_proj": (kv_heads * head_dim, hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    shapes = {"model.embed_tokens": (vocab, hidden), "model.norm": (hidden,)}
    shapes |= {
        f"model.layers.{i}.{k}": shape for i in range(num_layers) for k, shape in layer.items()
    }
    mx.random.seed(0)
    weights = {f"{name}.weight": 0.1 * mx.random.normal(shape) for name, shape in shapes.items()}
    directory.mkdir()
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def engines(folder: Path) -> list[Engine]:
    deep, shallow = (write_model(folder / str(n), n) for n in (LAYERS, FEWER_LAYERS))
    return [
        Engine("ours", "host_core.py", {"model": deep, "num_tokens": NUM_TOKENS}),
        Engine("mlx-lm", "host_mlx_lm.py", {"model": deep}),
        Engine("shallow", "host_core.py", {"model": shallow, "num_tokens": NUM_TOKENS}),
    ]


def measure(children: dict[str, Child], batch: int, runs: int) -> Times:
    taking_turns = [name for name in children if name != "shallow"]
    request = {"batch": batch, "steps": STEPS, "warm_up": WARM_UP}
    answers = take_turns(
        children, dict.fromkeys(taking_turns, runs), dict.fromkeys(taking_turns, request)
    )
    return {
        name: {part: [run[part] for run in a] for part in ("wall_ms", "cpu_ms")}
        for name, a in answers.items()
    }


def rows(batch: int, times: Times) -> list[Row]:
    ours, theirs = times["ours"], times["mlx-lm"]
    parts = (("time", "wall_ms", 4.0), ("CPU time", "cpu_ms", None))
    return [
        Row(
            f"host {what} a step, batch {batch}", "ms", ours[part], "mlx-lm", theirs[part],
            higher_is_better=False, target=target,
        )
        for what, part, target in parts
    ]  # fmt: skip


def growth(times: dict[int, Times]) -> Row:
    """Whether the host's time is flat in the batch; what is not is the sampler's and kernels'."""
    least, most = min(times), max(times)
    largest, smallest = (times[batch]["ours"]["wall_ms"] for batch in (most, least))
    what = f"host time a step, batch {most} to {least}"
    return Row(what, "ms", largest, f"ours at {least}", smallest, higher_is_better=False)


def nodes_a_layer(children: dict[str, Child]) -> Row:
    request = {"batch": 8, "steps": 1, "warm_up": 1}
    deep, shallow = (children[name].run(**request)["nodes"] for name in ("ours", "shallow"))
    nodes = (deep - shallow) / (LAYERS - FEWER_LAYERS)
    return Row("nodes a layer", "", [nodes], AT_MOST, [11], higher_is_better=False, target=1)


def main() -> int:
    options = arguments(__doc__, runs=5).parse_args()
    runs = 1 if options.quick else options.runs
    with (
        tempfile.TemporaryDirectory() as folder,
        started(engines(Path(folder)), threads=1) as children,
    ):
        versions = {k: v for child in children.values() for k, v in child.versions.items()}
        settings = {"runs": runs, "layers": LAYERS, "steps a run": STEPS}
        result = Result(Path(__file__).name, Machine.here(1), versions, settings)
        times = {batch: measure(children, batch, runs) for batch in BATCHES}
        result.rows += [row for batch in BATCHES for row in rows(batch, times[batch])]
        result.rows += [growth(times), nodes_a_layer(children)]
    result.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
