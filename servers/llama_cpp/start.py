"""Becomes llama.cpp's own server, `llama-server`, which the package xllamacpp has as a library.

    python -m servers.llama_cpp.start FILE MODEL NAME HOST PORT THREADS SLOTS

The comments are the flags of `llama-server`. On SIGTERM it lets responses in progress end.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import xllamacpp

from servers.runtime.cuda_devices import EngineDevice, log_device

SLOT_TOKENS = 2048  # as many as vLLM has room for on a CPU, with 64 sequences of the small model
ENDS = {signal.SIGTERM, signal.SIGINT}
LAST_RESPONSES_S = 10.0
WRITTEN_S = 0.2  # a slot is free a moment before its client has the last bytes
IDLE = "\nllamacpp:requests_processing 0\n"


def parameters(
    file: str, model: str, name: str, host: str, port: str, threads: str, slots: str
) -> xllamacpp.CommonParams:
    config = json.loads(Path(model, "config.json").read_text())
    found = xllamacpp.CommonParams()
    found.model.path = file  # --model
    found.model_alias = {name}  # --alias
    found.hostnames = [host]  # --host
    found.port = int(port)  # --port
    found.cpuparams.n_threads = int(threads)  # --threads
    found.cpuparams_batch.n_threads = int(threads)  # --threads-batch
    found.n_parallel = int(slots)  # --parallel
    # --ctx-size, for all slots together
    found.n_ctx = int(slots) * min(SLOT_TOKENS, config["max_position_embeddings"])
    # --no-kv-unified: in a pool that all slots share, long requests would make others fail
    found.kv_unified = False
    # --no-cache-prompt, --cache-ram 0: as in vLLM here, since most measured prompts are unique
    found.cache_prompt = False
    found.cache_ram_mib = 0
    found.fit_params = False  # --fit off: exactly these sizes
    found.endpoint_metrics = True  # --metrics
    found.ui = False  # --no-ui
    found.offline = True  # --offline
    found.verbosity = 2  # --log-verbosity: warnings
    if key := os.environ.get("SERVEOFF_API_KEY"):
        found.api_keys = [key]  # --api-key
    return found


if __name__ == "__main__":
    # Before the server's threads start, which inherit it: the signals are for sigwait below.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    log_device(EngineDevice("cpu", None, None, os.environ["SERVEOFF_QUANTIZATION"], "start"))
    server = xllamacpp.Server(parameters(*sys.argv[1:]))
    signal.sigwait(ENDS)
    deadline = time.monotonic() + LAST_RESPONSES_S
    while IDLE not in server.handle_metrics() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(WRITTEN_S)
    os._exit(0)  # the library's own end waits for ever for a response in progress
