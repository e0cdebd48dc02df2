"""Prints what NVML reports and, as JSON, the memory of process SERVER_PID on each card after two
samples. With "container" as its argument, it behaves as in a container.
"""

import json
import os
import sys

from loadtests.telemetry import gpu

if __name__ == "__main__":
    if "container" in sys.argv:
        gpu.sees_host_processes = lambda: False
    gpus = gpu.Gpus(print)
    for _ in range(2):
        found = gpus.sample_slow({int(os.environ["SERVER_PID"])})
    print(json.dumps([card["server_memory_bytes"] for card in found]))
