"""Becomes LiteLLM's proxy in front of one OpenAI-compatible server.

python -m servers.litellm.start MODEL_NAME UPSTREAM RUN_FOLDER HOST PORT
"""

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    name, upstream, run, host, port = sys.argv[1:]
    key = os.environ.get("SERVEOFF_API_KEY", "")
    config = {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"hosted_vllm/{name}",
                    "api_base": f"{upstream}/v1",
                    "api_key": "os.environ/SERVEOFF_API_KEY" if key else "none",
                },
            }
        ],
        "litellm_settings": {"callbacks": ["prometheus"], "telemetry": False},
    }
    file = Path(run, "litellm.yaml")
    file.write_text(json.dumps(config))  # JSON is YAML
    environment = os.environ | {
        "HOME": run,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it downloads the prices of all models
        "LITELLM_TELEMETRY": "False",
        "LITELLM_LOG": "ERROR",
    }
    if key:
        environment["LITELLM_MASTER_KEY"] = key
    else:
        environment["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"
    command = ["litellm", "--config", str(file), "--host", host, "--port", port]
    os.execvpe(command[0], command, environment)  # noqa: S606 - no shell
