"""Serving architectures, one folder each, and the six folders of shared code.

    contract/     the API, its conformance checks, the oracle, /metrics
    runtime/      the catalogue, launching and supervising, limits, revisions
    engines/      what runs a model inside a server
    frameworks/   what several servers of one web framework share
    profile/      finds out what somebody else's endpoint is and does
    conversion/   makes other formats of a model, in the environment of the server that reads them

A server may import the first four; nothing imports a server. Nothing here imports `loadtests` or
`analysis`.
"""
