"""Records the machine while a case runs: process trees, GPUs, cores, and the server's metrics.

`python -m loadtests.telemetry` samples beside the load. Imports `client` and `schema`.
"""
