"""The workload: scenarios, arrival processes, traces and prompts.

Pure and seeded: the same seed gives the same requests. Imports `errors` and the servers' contract,
profile and catalog.
"""
