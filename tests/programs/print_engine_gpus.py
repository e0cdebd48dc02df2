"""Prints, for each environment of the JSON list in its argument, as JSON: the card that engines
would use as NVML and then torch describe it, or the sentence that refuses it, and the variables
that servers get. `vllm` in an environment are the servers with vLLM.
"""

import json
import os
import sys

from loadtests.telemetry import engine_gpus
from servers.runtime.errors import LaunchError


def try_one(wanted: dict[str, str]) -> dict[str, object]:
    kept = dict(os.environ)
    vllm = wanted.pop("vllm", "").split()
    os.environ.update(wanted)
    try:
        card = engine_gpus.find_card()
        if card is None:
            engine_gpus.check_cpu(vllm)
            return {"card": None, "expected": engine_gpus.expected_device(None)}
        tried = engine_gpus.try_card(card, vllm)
        return {
            "card": [card.name, card.total_bytes, card.free_bytes, card.cards],
            "tried": [tried.name, tried.total_bytes, tried.free_bytes, tried.cards],
            "indices": tried.indices,
            "described": engine_gpus.describe(tried),
            "expected": engine_gpus.expected_device(tried),
            "environment": {
                name: os.environ.get(name)
                for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "SERVEOFF_DTYPE")
            },
        }
    except LaunchError as error:
        return {"refused": str(error)}
    finally:
        os.environ.clear()
        os.environ.update(kept)


if __name__ == "__main__":
    print(json.dumps([try_one(each) for each in json.loads(sys.argv[1])]))
