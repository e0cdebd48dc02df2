"""Measures servers: plans the cases, sends and timestamps the requests, and records the results.

    schema/      the files on disk, as types; the only module that `analysis` may import
    workload/    the requests and their times: scenarios, arrivals, prompts
    client/      one request on the wire
    telemetry/   the machine: processes, GPUs, the server's own metrics
    generator/   the Locust processes
    progress/    the display while a campaign runs
    accuracy/    the load generator against a known ground truth
    campaign/    the cases: their order, their stages and their folders
    claims/      campaigns that test common claims about serving architectures

Each folder may import only the folders above it in this list.
"""
