"""Replaces itself with vLLM's own OpenAI server, with the engine arguments of
servers/engines/vllm.py.
"""

import os
import sys

from servers.engines import Settings
from servers.engines.vllm_settings import ENVIRONMENT, engine_arguments, flags, is_on_gpu
from servers.runtime.cuda_devices import EngineDevice, log_device

if __name__ == "__main__":
    host, port = sys.argv[1:]
    # As in our servers: no access log, and 10 s for responses in progress.
    server = {
        "host": host,
        "port": port,
        "disable_uvicorn_access_log": True,
        "shutdown_timeout": 10,
    }
    key = os.environ.get("SERVEOFF_API_KEY")
    arguments = engine_arguments(Settings.from_environment())
    device = "cuda" if is_on_gpu() else "cpu"
    log_device(EngineDevice(device, None, None, arguments["dtype"], "start"))
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        *flags(server | arguments),
    ]
    os.execve(  # noqa: S606 - no shell
        command[0], command, ENVIRONMENT | os.environ | ({"VLLM_API_KEY": key} if key else {})
    )
