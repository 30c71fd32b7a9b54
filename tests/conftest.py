# SPDX-License-Identifier: Apache-2.0
"""What every test may rely on."""

import os
import signal

# Before anything imports a hub's client, which reads it then.
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell that starts a job in the background has it ignore Ctrl-C, and children inherit that; tests
# of an interrupted command need it to be heard.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
