"""The workload: scenarios, arrival processes, traces and prompts.

Pure and seeded: the same seed gives the same requests. Imports `schema` and the servers' contract.
"""
