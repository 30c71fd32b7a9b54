# SPDX-License-Identifier: Apache-2.0
"""How fast memory is read: the sum of 512 MB, on the device on which MLX computes.

No cache holds that much. On a CPU torch adds up, for MLX would on one core only.
"""

import time
from importlib.metadata import version

import child
import mlx.core as mx

NUM_BYTES = 512 << 20
READS = 5  # a run; the fastest counts, for it is what the machine allows


def main() -> None:
    if mx.default_device() == mx.gpu:
        memory = mx.ones(NUM_BYTES // 4, mx.float32)
        mx.eval(memory)
        read, versions = (lambda: mx.eval(mx.sum(memory))), {"mlx": version("mlx")}
    else:
        import torch

        torch.set_num_threads(child.settings()["threads"])
        tensor = torch.ones(NUM_BYTES // 4)
        read, versions = tensor.sum, {"torch": version("torch")}

    def run() -> child.Answer:
        times = []
        for _ in range(READS):
            start = time.perf_counter()
            read()
            times.append(time.perf_counter() - start)
        return {"bytes_per_second": NUM_BYTES / min(times)}

    child.serve(versions, run)


main()
