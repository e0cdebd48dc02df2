# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Utilisation
# What the machine did meanwhile: CPU, memory, GPU, and what a token cost.

# %%
# %matplotlib inline
import os

from IPython.display import display

from analysis import dataset
from analysis.plots import figures
from analysis.summary import build_comparisons, summarise

campaign = dataset.read_campaign(os.environ.get("SERVEOFF_CAMPAIGN"))
summary = summarise(campaign)
campaign.folder.name

# %%
columns = [
    "server_cores",
    "tokens_per_cpu_s",
    "context_switches_per_s",
    "server_peak_bytes",
    "load_cpu_share",
]
summary.valid.set_index(["scenario", "server", "engine", "repetition"])[columns]

# %%
columns = [
    "gpu_utilization_percent",
    "gpu_memory_bytes",
    "gpu_power_w",
    "gpu_tokens_per_joule",
    "mbu",
    "mfu",
]
summary.valid.set_index(["scenario", "server", "engine", "repetition"])[columns]

# %%
for comparison in build_comparisons(summary):
    display(figures.draw_timeline(summary, comparison))

# %% [markdown]
# One run by itself, as it was sampled:

# %%
index = summary.table.index[0]
campaign.telemetry(index).head()
