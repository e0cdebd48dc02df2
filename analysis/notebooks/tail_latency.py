# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Tail latency
# How long do the slowest requests wait, and for what?
#
# **Go on from here.** To open this notebook on its campaign, install JupyterLab beside this
# project's packages (`.nox/report` has them) and run, from the repository's root,
# `PYTHONPATH=$PWD jupyter lab CAMPAIGN/notebooks/tail_latency.ipynb`.
# `summary.table` has one row per case and one column per metric, in seconds and bytes;
# `summary.valid` has the valid cases only. `picture.data` is the data frame behind a figure.
# A question that this campaign cannot answer is left out.

# %%
import os
import textwrap

import pandas as pd
from IPython.display import display

from analysis.attribution import PARTS, attribute_latency, split_latencies, visible_parts
from analysis.dataset import read_campaign
from analysis.formatting import format_number, tabulate_metrics, workload_title
from analysis.plots import figures, latency_parts, tradeoffs
from analysis.summary import build_comparisons, build_sweeps, summarise

pd.options.display.float_format = format_number
campaign = read_campaign(os.environ.get("SERVEOFF_CAMPAIGN", ".."))
summary = summarise(campaign)
comparisons = [each for each in build_comparisons(summary) if each.has_number]
attributions = {each.title: attribute_latency(summary, each) for each in comparisons}
print(f"{campaign.data['name']}: {len(summary.valid)} of {len(summary.table)} cases are valid.")

# %% [markdown]
# ## How long does a user wait for the first token?
# Times count from when a request was scheduled, and a failure counts as infinity. P95 needs 59
# requests, P99 needs 299. Runs are never pooled: mean over runs and half-width of its 95% interval.

# %%
tabulate_metrics(summary.valid, ["ttft_p50_s", "ttft_p95_s", "ttft_p99_s"])

# %% [markdown]
# ## How long does the whole response take?

# %%
tabulate_metrics(summary.valid, ["e2e_p50_s", "e2e_p95_s", "e2e_p99_s"])

# %% [markdown]
# ## How fast and how evenly does the text arrive?
# TPOT is one request's mean time per token; ITL is each gap between two chunks.

# %%
names = [f"{name}_p{p}_s" for name in ("tpot", "itl") for p in (50, 95, 99)]
tabulate_metrics(summary.valid, names)

# %% [markdown]
# ## How far is the tail from the median?

# %%
for comparison in comparisons:
    print(comparison.title)
    display(figures.draw_tail(comparison))

# %% [markdown]
# ## Which share of the requests is faster than a given time?
# One line per run. A line that ends below 1 has failures.

# %%
for comparison in comparisons:
    print(comparison.title)
    display(figures.draw_latency_cdf(summary, comparison))

# %% [markdown]
# ## How does the tail grow with the load?

# %%
for sweep in build_sweeps(comparisons):
    if len(sweep.comparisons) > 1:
        print(sweep.scenario)
        display(tradeoffs.draw_curve(sweep, "ttft"), tradeoffs.draw_curve(sweep, "e2e"))

# %% [markdown]
# ## What do the slowest requests wait for?

# %%
for comparison in comparisons:
    found = attributions[comparison.title]
    print(comparison.title)
    for each in found:
        print(textwrap.fill(f"{each.system.name}: {each.sentence}", 100))
    if any(each.bars for each in found):
        display(latency_parts.draw_latency_parts(found))

# %% [markdown]
# ## Which are the three slowest requests of each server?
# The first valid run, completed requests, milliseconds.

# %%
for comparison in comparisons:
    slowest = {
        system.name: split_latencies(summary.latencies[system.valid.index[0]]).nlargest(3, "e2e_s")
        for system in comparison.systems
        if len(system.valid)
    }
    labels = {name: PARTS[name].label for name in visible_parts(attributions[comparison.title])}
    parts = pd.concat(slowest, names=["server", "request"])[["e2e_s", *labels]]
    print(comparison.title)
    display((1000 * parts).round(3).rename(columns={"e2e_s": "E2E"} | labels))

# %% [markdown]
# ## Which cases are invalid, and why?

# %%
for case in summary.table[~summary.table["valid"]].itertuples():
    title = workload_title(case.scenario, case.users, case.rate)
    print(f"{case.server} ({case.engine}), {title}, run {case.repetition}: {case.why}")
