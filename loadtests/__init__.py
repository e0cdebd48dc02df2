"""The load side: which cases are measured, how requests are sent and stamped, and what is recorded.

    schema/      what is on disk, as types; the only module that `analysis` may import
    workload/    what is sent, and when: scenarios, arrivals, prompts
    client/      one request on the wire
    telemetry/   the machine: processes, GPUs, the server's own metrics
    generator/   the Locust processes
    progress/    what the user sees while a campaign runs
    accuracy/    the load generator against a known ground truth
    campaign/    which cases, in which order, one after the other
    claims/      campaigns that test what people say about serving architectures

Imports go down this list only: each folder may import those above it.
"""
