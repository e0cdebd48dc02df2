"""From results on disk to numbers, checks, a report, a recommendation and a verdict.

    dataset, case       a campaign's folder, and the frames of one case
    stats, slo          statistics; bounds on latency and errors
    metrics/            every number, with its definition
    checks/             when a number must not be used, and what to do about it
    summary             cases joined into comparisons and sweeps
    conclusions         who was best, and who has no valid case
    plots/              figures
    capacity/           the load that a server sustains within an SLO
    gate/               base against head
    report/             pages, terminal tables, notebooks
    studies/            the pages on claims and on the load generator's accuracy

Imports go down this list only. Of the rest of the house only `loadtests.schema` is imported.
"""
