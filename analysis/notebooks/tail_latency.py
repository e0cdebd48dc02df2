# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Tail latency
# How long the unlucky requests waited. Times count from when a request was *scheduled*, a
# failure counts as infinity, and runs are never pooled: each line is a run, each number a mean
# over runs.

# %%
# %matplotlib inline
import os

import pandas as pd
from IPython.display import display

from analysis import attribution, dataset
from analysis.plots import figures, latency_parts, tradeoffs
from analysis.summary import build_comparisons, build_sweeps, summarise

campaign = dataset.read_campaign(os.environ.get("SERVEOFF_CAMPAIGN"))
summary = summarise(campaign)
campaign.folder.name

# %% [markdown]
# A percentile that its sample is too small for is missing (P95 needs 59 requests, P99 299).

# %%
columns = [f"{name}_p{p}_s" for name in ("ttft", "tpot", "e2e", "itl") for p in (50, 95, 99)]
summary.valid.set_index(["scenario", "server", "engine", "repetition"])[columns]

# %%
for comparison in build_comparisons(summary):
    display(figures.draw_tail(comparison))

# %%
for comparison in build_comparisons(summary):
    display(figures.draw_latency_cdf(summary, comparison))

# %% [markdown]
# How the tail grows with the load, one line for each server, where a scenario has several loads:

# %%
for sweep in build_sweeps(build_comparisons(summary)):
    if len(sweep.comparisons) > 1 and len(sweep.points):
        display(tradeoffs.draw_curve(sweep, "ttft"), tradeoffs.draw_curve(sweep, "e2e"))

# %% [markdown]
# The slowest completed requests of each run, and what they waited for: parts of E2E in seconds
# (analysis/attribution.py).

# %%
slowest = {
    index: attribution.split_latencies(frame).nlargest(3, "e2e_s")
    for index, frame in summary.latencies.items()
}
pd.concat(slowest, names=["case", "request"]) if slowest else "no case has a number"

# %%
for comparison in build_comparisons(summary):
    if whys := attribution.attribute_latency(summary, comparison):
        display(latency_parts.draw_latency_parts(whys))
