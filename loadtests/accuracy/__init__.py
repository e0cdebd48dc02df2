"""The load generator against a known ground truth: calibration, experiments, a C reader and sender.

Imports `generator`, `telemetry`, `client`, `workload` and `schema`.
"""
