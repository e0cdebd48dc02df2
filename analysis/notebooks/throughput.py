# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Throughput
# Which server sustained the most, under which traffic, and how sure that is. Cases without a valid
# number are left out here; the report gives their reasons.

# %%
# %matplotlib inline
import os

from IPython.display import display

from analysis import dataset, metrics
from analysis.conclusions import describe_result
from analysis.plots import figures, tradeoffs
from analysis.report import comparison_section
from analysis.summary import build_comparisons, build_sweeps, summarise

campaign = dataset.read_campaign(os.environ.get("SERVEOFF_CAMPAIGN"))
summary = summarise(campaign)
campaign.folder.name

# %%
for comparison in build_comparisons(summary):
    print(describe_result(comparison))

# %% [markdown]
# Mean over runs, half-width of the 95% interval, number of runs:

# %%
summary.estimates("output_tokens_per_s")

# %%
summary.estimates("goodput_per_s")

# %% [markdown]
# Of closed loops only: what an open one asks for is decided by its scenario, and is no result.

# %%
closed = [each for each in build_comparisons(summary) if not each.is_open]
for comparison in closed:
    display(figures.draw_throughput(comparison))

# %% [markdown]
# What a user gets against what the machine gives, over all loads of a scenario. Each picture
# brings what it draws as a frame: go on
# from there.

# %%
for sweep in build_sweeps(closed):
    # else no case has a number, or answers have one token
    if sweep.points["user_tokens_per_s"].notna().any():
        picture = tradeoffs.draw_pareto(sweep)
        display(picture, picture.data)

# %% [markdown]
# How many times worse than the best of its column each number is:

# %%
for comparison in build_comparisons(summary):
    if comparison.has_number:
        display(
            tradeoffs.draw_heat_map(comparison, comparison_section.compared_metrics(comparison))
        )

# %% [markdown]
# Every case by itself, and which of them have no number:

# %%
summary.table[
    [
        "server",
        "engine",
        "scenario",
        "repetition",
        "valid",
        "why",
        "output_tokens_per_s",
        "requests_per_s",
    ]
]

# %% [markdown]
# What each metric means:

# %%
{
    m.label: " ".join((m.value.__doc__ or "").split())
    for m in metrics.METRICS.values()
    if m.name.endswith("per_s")
}
