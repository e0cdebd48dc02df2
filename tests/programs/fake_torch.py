"""A fake `torch` for the process that asks which GPUs torch can compute on; every other process
gets the real one. tests/helpers/fake_torch.py installs it.

FAKE_TORCH is JSON: {cuda, devices: [{name, uuid, major, minor, free, total}], error, kind}; `error`
is what torch raises, as an exception of this `kind`.
FAKE_ENGINE_DEVICE is the name of the GPU that Transformers' engine then reports.
"""

import builtins
import importlib
import json
import os
import sys
import types

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120


def use_real_torch():
    sys.path[:] = [path for path in sys.path if path != HERE]
    del sys.modules["torch"]
    importlib.invalidate_caches()
    importlib.import_module("torch")
    if name := os.environ.get("FAKE_ENGINE_DEVICE"):
        from servers.runtime import cuda_devices

        def describe(device, dtype):
            kind = str(dtype).removeprefix("torch.")
            return cuda_devices.EngineDevice("cuda", name, "f0-0", kind, "engine")

        cuda_devices.describe_weights = describe


class Tensor:
    def __matmul__(self, other):
        return self

    def float(self):
        return self

    def sum(self):
        return self

    def item(self):
        return 64**3


if "servers.runtime.cuda_devices" in sys.orig_argv:
    script = json.loads(os.environ["FAKE_TORCH"])
    devices = script.get("devices", [])
    float16 = "float16"
    __version__ = "2.99.0"
    version = types.SimpleNamespace(cuda=script.get("cuda"))

    def zeros(*_, **__):
        if error := script.get("error"):
            raise getattr(builtins, script.get("kind", "RuntimeError"))(error)
        return Tensor()

    def ones(*_, **__):
        return Tensor()

    cuda = types.SimpleNamespace(
        device_count=lambda: len(devices),
        mem_get_info=lambda index: (devices[index]["free"], devices[index]["total"]),
        get_device_properties=lambda index: types.SimpleNamespace(**devices[index]),
    )
else:
    use_real_torch()
