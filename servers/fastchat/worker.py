"""FastChat's model worker on the device and with the type of numbers that our own engine would
choose: FastChat's default is "cuda".
"""

import runpy
import sys

import torch

from servers.runtime.cuda_devices import EngineDevice, engine_dtype, log_device

device = "cuda" if torch.cuda.is_available() else "cpu"
log_device(EngineDevice(device, None, None, engine_dtype(), "start"))
sys.argv += ["--device", device, "--dtype", engine_dtype()]
runpy.run_module("fastchat.serve.model_worker", run_name="__main__")
