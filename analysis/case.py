"""The recorded data of one case, and the populations of requests that metrics are computed over
(the formulas are in metrics/).
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis import defaults, hardware
from analysis.dataset import Campaign, Json
from analysis.slo import parse_slo, request_bounds
from analysis.stats import NAN


@dataclass
class CaseData:
    """The recorded data of one case, with the columns that every formula needs. All times are in
    seconds.
    """

    campaign: Json
    run: Json
    requests: pd.DataFrame
    telemetry: pd.DataFrame
    slo: dict[str, float] = field(default_factory=lambda: request_bounds(parse_slo(defaults.SLO)))
    server_metrics: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=["time_s", "took_s", "name", "value"])
    )
    machine_cost: hardware.MachineCost = hardware.NO_COST

    @cached_property
    def window(self) -> tuple[float, float]:
        """[start, end) of the measurement; nan, so that nothing lies inside, if the load never
        ran.
        """
        window = self.run.get("window") or {}
        return window.get("start_s", NAN), window.get("end_s", NAN)

    @property
    def length(self) -> float:
        return self.window[1] - self.window[0]

    def inside(self, times: Any) -> Any:
        return (times >= self.window[0]) & (times < self.window[1])

    @cached_property
    def rows(self) -> pd.DataFrame:
        """All requests, including those of warm-up and drain, with failed, good (complete and not
        wrong), met_slo and the latencies: ttft_s, visible_ttft_s, tpot_s, e2e_s, and send_lag_s as
        the sum of slot_wait_s (the wait that the scenario's cap on concurrency imposed), the least
        time to connect, and client_lag_s. tpot_missing: a complete response of several tokens has
        no TPOT, since its usage is not credible or all its tokens came in one chunk. A response
        without any token failed, whatever its row says.
        """
        r = dict(self.requests.items())  # a frame takes longer for each column
        nothing = r["error"].isna() & r["first_s"].isna()
        r["error"] = r["error"].astype("object").mask(nothing, "no token")
        r["failed"] = r["error"].notna()
        r["good"] = ~r["failed"] & (r["answer"] != "wrong")
        r["ttft_s"] = r["first_s"] - r["scheduled_s"]
        r["e2e_s"] = r["done_s"] - r["scheduled_s"]
        r["send_lag_s"] = r["sent_s"] - r["scheduled_s"]
        r["slot_wait_s"] = r["slot_s"] - r["scheduled_s"]
        # Connecting takes at least the shortest such time, because of the network and the server.
        # A busy client makes it longer, and is responsible for the rest.
        connecting_s = r["connect_s"].clip(upper=r["connect_s"].min()).fillna(0.0)
        r["client_lag_s"] = r["send_lag_s"] - r["slot_wait_s"].fillna(0.0) - connecting_s
        r["visible_ttft_s"] = r["first_visible_s"] - r["scheduled_s"]
        # without usage, chunks are counted; with an impossible usage, nothing is
        tokens = credible_usage(self.requests).where(r["tokens"].notna(), r["tokens_counted"])
        later = tokens - np.array([n[0] if len(n) else NAN for n in r["token_n"]], dtype="float64")
        r["tpot_s"] = ((r["last_s"] - r["first_s"]) / later.where(later > 0)).where(~r["failed"])
        one_token = (tokens == 1) | (tokens.isna() & (r["max_tokens"] == 1))
        r["tpot_missing"] = ~r["failed"] & r["tpot_s"].isna() & ~one_token
        met_slo = r["good"]
        for name, bound in self.slo.items():
            # a response of one token has no TPOT, so it cannot miss that bound
            met = (r[name] <= bound) | (one_token if name == "tpot_s" else False)
            met_slo = met_slo & met
        r["met_slo"] = met_slo
        return pd.DataFrame(r, index=self.requests.index, copy=False)

    @cached_property
    def scheduled(self) -> pd.DataFrame:
        """The population of every latency: the requests scheduled inside the window, including
        those that finish in the drain.
        """
        return self.rows[self.inside(self.rows["scheduled_s"])]

    @cached_property
    def finished(self) -> pd.DataFrame:
        return self.rows[self.inside(self.rows["done_s"])]

    @cached_property
    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """(arrival in seconds, tokens) of every chunk of every request, including those that failed
        later; unordered.
        """
        return _arrivals(self.rows)

    @cached_property
    def completed_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """`tokens` of the requests that did not fail."""
        return _arrivals(self.rows[~self.rows["failed"]])

    @cached_property
    def partial_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """`tokens` of the requests that failed."""
        return _arrivals(self.rows[self.rows["failed"]])

    @cached_property
    def gaps(self) -> np.ndarray:
        """Seconds between chunks that carry tokens, within each request scheduled in the window."""
        parts = list(self.scheduled["token_s"])
        if not parts:
            return np.empty(0)
        gaps = np.diff(np.concatenate(parts))
        ends = np.cumsum([len(p) for p in parts])[:-1]
        # The difference from one request's last chunk to the next request's first is no gap.
        borders = np.unique(ends[(ends > 0) & (ends <= len(gaps))]) - 1
        return np.delete(gaps, borders)

    @cached_property
    def _latencies(self) -> dict[tuple[str, bool], np.ndarray]:
        return {}

    def latencies(self, name: str, failures: bool = True) -> np.ndarray:
        """The values of one latency over `scheduled`. In TTFT and E2E a failure is +inf, or is left
        out without `failures`. In visible TTFT a failure and a response without a visible token are
        +inf; older campaigns did not record it.
        """
        if (name, failures) not in self._latencies:
            self._latencies[name, failures] = self._select_latencies(name, failures)
        return self._latencies[name, failures]

    def _select_latencies(self, name: str, failures: bool) -> np.ndarray:
        if name == "itl_s":
            return self.gaps
        values = self.scheduled[name]
        if name in ("ttft_s", "e2e_s"):
            values = values.where(~self.scheduled["failed"], np.inf if failures else NAN)
        if name == "visible_ttft_s" and self.rows["token_source"].notna().any():
            values = values.where(~self.scheduled["failed"], np.inf).fillna(np.inf)
        return values.dropna().to_numpy()

    def samples(self, column: str) -> pd.DataFrame:
        """time_s and one telemetry column of the window's samples that have it."""
        t = self.samples_inside
        return t[["time_s", column]].dropna() if column in t else t.iloc[:0][["time_s"]]

    @cached_property
    def samples_inside(self) -> pd.DataFrame:
        return self.telemetry[self.inside(self.telemetry["time_s"])]

    def slope(self, column: str) -> float:
        """A counter's rise per second between its first and its last sample in the window; nan with
        fewer than two samples, or if those of an exporter do not cover the window.
        """
        if column not in self.samples_inside:
            return NAN
        values = self.samples_inside[column].to_numpy()
        known = ~np.isnan(values)
        times = self.samples_inside["time_s"][known]
        if known.sum() < 2 or (self.is_exported(column) and not self.covers_window(times, 2)):
            return NAN
        return float(np.ptp(values[known]) / np.ptp(times))

    @property
    def server_machine(self) -> Json:
        """run.json's "server_machine"; empty in older campaigns."""
        return self.run.get("server_machine") or {}

    def is_exported(self, column: str) -> bool:
        """Whether a telemetry column comes from an exporter, which has samples at its own pace."""
        by = "gpu_exporters" if re.match(r"gpu\d+_", column) else "host_exporter"
        return not column.startswith(("load_", "server_")) and bool(self.server_machine.get(by))

    def covers_window(self, times: Any, least: int) -> bool:
        """Whether these times are at least so many, and span at least half of the window."""
        return len(times) >= least and bool(np.ptp(times) >= self.length / 2)

    def served(self, *names: str) -> pd.Series:
        """One of the server's own metrics over time: the first of these names that it has, summed
        over labels. The index is when the response to the scrape had arrived, s: a server that
        queues a scrape reports its state at the end of that wait.
        """
        m = self.server_metrics
        if m.empty:
            return pd.Series(dtype="float64", index=pd.Index([], dtype="float64"))
        name = next((name for name in names if (m["name"] == name).any()), None)
        rows = m[m["name"] == name]
        return rows["value"].groupby(rows["time_s"] + rows["took_s"]).sum()

    def gpu_columns(self, name: str, used: bool = True) -> list[str]:
        """The telemetry columns `name` of the GPUs that the server uses, or of the others. Where
        the server's are unknown, all count as used.
        """
        known = self.run.get("gpus")
        columns = [c for c in map(str, self.telemetry) if re.fullmatch(rf"gpu\d+_{name}", c)]
        if known is None:
            return columns if used else []
        own = {f"gpu{index}_{name}" for index in known}
        return [column for column in columns if (column in own) == used]

    @property
    def gpu_names(self) -> tuple[str, ...]:
        return hardware.used_gpu_names(self.campaign, self.run)


def credible_usage(requests: pd.DataFrame) -> pd.Series:
    """The tokens of each request by the server's usage; nan where it has none, or one that cannot
    be right, so that chunks were counted instead.
    """
    return requests["tokens"].where(requests["token_source"].ne("counted"))


def _arrivals(requests: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    times, numbers = list(requests["token_s"]), list(requests["token_n"])
    if not times:
        return np.empty(0), np.empty(0)
    return np.concatenate(times), np.concatenate(numbers)


def read_case(
    campaign: Campaign,
    index: int,
    slo: dict[str, float] | None = None,
    machine_cost: hardware.MachineCost = hardware.NO_COST,
) -> CaseData:
    return CaseData(
        campaign.data,
        campaign.runs.get(index, {}),
        campaign.requests(index),
        campaign.telemetry(index),
        slo or request_bounds(parse_slo(defaults.SLO)),
        campaign.server_metrics(index),
        machine_cost,
    )
