"""Serving architectures, one folder each, and the five folders of shared code.

    contract/     the API, its conformance checks, the oracle, /metrics
    runtime/      the catalogue, launching and supervising, limits, revisions
    engines/      what runs a model inside a server
    frameworks/   what several servers of one web framework share
    profile/      finds out what somebody else's endpoint is and does

A server may import the first four; nothing imports a server. Nothing here imports `loadtests` or
`analysis`.
"""
