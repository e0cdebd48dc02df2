"""Turns results on disk into metrics, checks, reports, recommendations and verdicts.

    stats, slo          statistics; bounds on latency and errors
    dataset, case       a campaign's folder, and the frames of one case
    metrics/            every metric, with its definition
    checks/             what makes a case invalid or doubtful, and the remedy
    summary             cases joined into comparisons and sweeps
    conclusions         the best server, and the servers without a valid case
    plots/              figures
    capacity/           the load that a server sustains within an SLO
    gate/               base against head
    report/             pages, terminal tables, notebooks
    studies/            the pages on claims and on the load generator's accuracy

A module may import those above it in this list. From outside this package it may import only
`loadtests.schema`.
"""
