# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Throughput
# Which server sustains the most, and how sure is that?
#
# **Go on from here.** To open this notebook on its campaign, install JupyterLab beside this
# project's packages (`.nox/report` has them) and run, from the repository's root,
# `PYTHONPATH=$PWD jupyter lab CAMPAIGN/notebooks/throughput.ipynb`.
# `summary.table` has one row per case and one column per metric, in seconds and bytes;
# `summary.valid` has the valid cases only. `picture.data` is the data frame behind a figure.
# A question that this campaign cannot answer is left out.

# %%
import os
import textwrap

import pandas as pd
from IPython.display import display

from analysis.conclusions import describe_result
from analysis.dataset import read_campaign
from analysis.formatting import format_number, tabulate_metrics, unit_of, workload_title
from analysis.metrics import METRICS
from analysis.plots import figures, tradeoffs
from analysis.report.comparison_section import compared_metrics
from analysis.summary import build_comparisons, build_sweeps, summarise

pd.options.display.float_format = format_number
campaign = read_campaign(os.environ.get("SERVEOFF_CAMPAIGN", ".."))
summary = summarise(campaign)
comparisons = [each for each in build_comparisons(summary) if each.has_number]
closed = [each for each in comparisons if not each.is_open]
names = ["output_tokens_per_s", "requests_per_s", "goodput_per_s", "error_share"]
print(f"{campaign.data['name']}: {len(summary.valid)} of {len(summary.table)} cases are valid.")

# %% [markdown]
# ## Which server is best?

# %%
for comparison in build_comparisons(summary):
    print(textwrap.fill(describe_result(comparison), 100), end="\n\n")

# %% [markdown]
# ## How much does each server sustain?
# Mean over runs and half-width of its 95% interval.

# %%
tabulate_metrics(summary.valid, names)

# %% [markdown]
# ## Do the intervals overlap?
# Closed loops only: the scenario fixes the rate of an open loop.

# %%
for comparison in closed:
    print(comparison.title)
    display(figures.draw_throughput(comparison))

# %% [markdown]
# ## What does a user get, and what does the machine give?
# All loads of a scenario; the grey stairs join the servers that no other beats in both.

# %%
for sweep in build_sweeps(closed):
    if sweep.points["user_tokens_per_s"].notna().any():  # a response of one token has no TPOT
        print(sweep.scenario)
        display(tradeoffs.draw_pareto(sweep))

# %% [markdown]
# ## How many times worse than the best is each number?

# %%
for comparison in comparisons:
    if sum(len(system.valid) > 0 for system in comparison.systems) > 1:
        print(comparison.title)
        display(tradeoffs.draw_heat_map(comparison, compared_metrics(comparison)))

# %% [markdown]
# ## How much do the runs differ?

# %%
tabulate_metrics(summary.valid, names, per_run=True)

# %% [markdown]
# ## Which cases are invalid, and why?

# %%
for case in summary.table[~summary.table["valid"]].itertuples():
    title = workload_title(case.scenario, case.users, case.rate)
    print(f"{case.server} ({case.engine}), {title}, run {case.repetition}: {case.why}")

# %% [markdown]
# ## What does each metric mean?

# %%
for name in names:
    meaning = " ".join(METRICS[name].value.__doc__.split())
    print(textwrap.fill(f"{METRICS[name].label} ({unit_of(name)}): {meaning}", 100))
