"""FastChat's model worker on the device that our own engine would choose: FastChat's default is
"cuda".
"""

import runpy
import sys

import torch

sys.argv += ["--device", "cuda" if torch.cuda.is_available() else "cpu"]
runpy.run_module("fastchat.serve.model_worker", run_name="__main__")
