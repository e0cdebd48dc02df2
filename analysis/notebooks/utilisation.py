# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Utilisation
# What did the machine do meanwhile, and what did a token cost it?
#
# **Go on from here.** To open this notebook on its campaign, install JupyterLab beside this
# project's packages (`.nox/report` has them) and run, from the repository's root,
# `PYTHONPATH=$PWD jupyter lab CAMPAIGN/notebooks/utilisation.ipynb`.
# `summary.table` has one row per case and one column per metric, in seconds and bytes;
# `summary.valid` has the valid cases only. `picture.data` is the data frame behind a figure.
# A question that this campaign cannot answer is left out.

# %%
import os

import pandas as pd
from IPython.display import display

from analysis.dataset import read_campaign
from analysis.formatting import format_number, tabulate_metrics, workload_title
from analysis.plots import figures
from analysis.summary import build_comparisons, summarise

pd.options.display.float_format = format_number
campaign = read_campaign(os.environ.get("SERVEOFF_CAMPAIGN", ".."))
summary = summarise(campaign)
comparisons = [each for each in build_comparisons(summary) if each.has_number]
print(f"{campaign.data['name']}: {len(summary.valid)} of {len(summary.table)} cases are valid.")

# %% [markdown]
# ## How much CPU does each server use, and what does a CPU-second give?

# %%
names = ["server_cores", "tokens_per_cpu_s", "context_switches_per_s", "machine_cores"]
tabulate_metrics(summary.valid, names)

# %% [markdown]
# ## How much memory does each server need?

# %%
tabulate_metrics(summary.valid, ["server_peak_bytes", "machine_memory_bytes"])

# %% [markdown]
# ## Did the load generator have CPU to spare?

# %%
tabulate_metrics(summary.valid, ["load_cpu_share"])

# %% [markdown]
# ## How busy is the GPU, and what does a token cost it?
# MBU and MFU: share of the GPU's peak memory bandwidth and arithmetic that was used.

# %%
names = ["gpu_utilization_percent", "gpu_memory_bytes", "gpu_power_w", "gpu_tokens_per_joule"]
tabulate_metrics(summary.valid, [*names, "mbu", "mfu"])

# %% [markdown]
# ## How did throughput, CPU and requests in flight develop?
# The first valid run; the window that the numbers come from is shaded.

# %%
for comparison in comparisons:
    print(comparison.title)
    display(figures.draw_timeline(summary, comparison))

# %% [markdown]
# ## What was sampled in one run?
# `campaign.telemetry(index)` has every sample of a case. CPU times and switches are counters.

# %%
if len(summary.valid):
    samples = campaign.telemetry(summary.valid.index[0]).dropna(axis="columns", how="all")
    in_bytes = samples.filter(regex="_bytes$") / 2**20
    samples[in_bytes.columns] = in_bytes
    samples = samples.rename(columns=lambda name: name.replace("_bytes", "_mib"))
    display(samples.convert_dtypes().head().T)

# %% [markdown]
# ## Which cases are invalid, and why?

# %%
for case in summary.table[~summary.table["valid"]].itertuples():
    title = workload_title(case.scenario, case.users, case.rate)
    print(f"{case.server} ({case.engine}), {title}, run {case.repetition}: {case.why}")
