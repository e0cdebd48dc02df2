"""Serving architectures, a folder each, and the four folders that they share.
A fifth, profile/, finds out what an endpoint of others is and does.

    contract/     the API, its conformance checks, the oracle, /metrics
    runtime/      the catalogue, launching and supervising, limits, revisions
    engines/      what runs a model inside a server
    frameworks/   what several servers of one web framework share

A server may import all four; nothing imports a server. Nothing here knows `loadtests` or
`analysis`.
"""
