# SPDX-License-Identifier: Apache-2.0
"""What every test may rely on."""

import os
import signal

# Before anything imports vLLM or a hub's client, which read them then.
os.environ.update(VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")

# A shell that starts a job in the background has it ignore Ctrl-C, and children inherit that; tests
# of an interrupted command need it to be heard.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
