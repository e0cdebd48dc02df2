"""Checks of the machine: other processes, steal, swap, exporters, GPU clocks, other GPUs."""

import numpy as np
import pandas as pd

from analysis import hardware, stats
from analysis.case import CaseData
from analysis.checks import lost_time
from analysis.checks.verdict import Check, check_limit, manifest_cores, server_cores
from analysis.metrics import resources
from analysis.stats import NAN

# NVML's reasons for clocks that the hardware held back. Idle clocks, application clocks and the
# power cap are normal.
THROTTLING = {
    0x8: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}


def check_other_processes(case: CaseData) -> Check:
    """The server lost at most 10% of its time to other processes on its cores; a warning above 5%.
    Processes other than the server and the load generator used at most 15% of the machine's cores
    in the window.
    """
    remedy = "stop other programs on this machine"
    if (lost := lost_time.lost_to_others(case)) > lost_time.SOME_LOST:
        return check_lost_time("other processes", lost, "other processes on its cores", remedy)
    cores = server_cores(case)
    other = (case.slope("cpu_busy_s") - case.slope("server_cpu_s") - case.slope("load_cpu_s")) / (
        cores or NAN
    )
    return check_limit(
        "other processes",
        other <= 0.15,
        other,
        "warning",
        f"other processes used {other:.0%} of {cores or '?'} cores",
        remedy,
    )


def check_steal(case: CaseData) -> Check:
    """The server lost at most 10% of its time because the hypervisor did not run its cores; a
    warning above 5%. The hypervisor took at most 2% of the machine's cores in the window. For a
    server on another machine: of the load generator's machine.
    """
    remedy = "use a machine that you do not share"
    if (lost := lost_time.lost_to_hypervisor(case)) > lost_time.SOME_LOST:
        return check_lost_time("steal", lost, "the hypervisor, which ran others meanwhile", remedy)
    share = case.slope("cpu_steal_s") / (server_cores(case) or NAN)
    whose = ""
    if hardware.is_elsewhere(case.run):
        share = case.slope("client_steal_s") / (manifest_cores(case) or NAN)
        whose = " of the load generator's machine"
    return check_limit(
        "steal", share <= 0.02, share, "warning", f"the hypervisor took {share:.1%}{whose}", remedy
    )


def check_lost_time(name: str, lost: float, to: str, remedy: str) -> Check:
    return Check(
        name,
        False,
        "invalid" if lost > lost_time.MOST_LOST else "warning",
        f"the server lost up to {lost:.0%} of its time to {to}",
        remedy,
        lost,
    )


def check_swap(case: CaseData) -> Check:
    """Swap in use did not grow in the window."""
    used = case.samples("swap_used_bytes")
    grown = (
        float(used["swap_used_bytes"].iloc[-1] - used["swap_used_bytes"].iloc[0])
        if len(used) > 1
        else NAN
    )
    return check_limit(
        "swap",
        grown <= 0,
        grown,
        "warning",
        f"swap grew by {grown / 2**20:.0f} MiB",
        "use fewer workers or a smaller model",
    )


# Mean utilisation above which a GPU that the server does not use was busy. In MIG mode NVML reports
# none: then the mean power, as a share of the card's limit; idle cards draw up to 40% of it.
BUSY_PERCENT = 5.0
BUSY_POWER = 0.5


def check_other_gpus(case: CaseData) -> Check | None:
    """GPUs that the server does not use were at most 5% busy in the window, or drew at most half of
    their power limit if NVML does not report how busy they were.
    """
    columns = case.gpu_columns("utilization_percent", used=False)
    if not columns:
        return None
    manifest = case.campaign.get("manifest") or {}
    limits = [gpu.get("power_limit_w") for gpu in manifest.get("gpus") or []]
    busy, unknown = [], []
    for name in (column.split("_")[0] for column in columns):
        index = int(name.removeprefix("gpu"))
        percent, power = (
            float(case.samples(column)[column].mean()) if column in case.telemetry else NAN
            for column in (f"{name}_utilization_percent", f"{name}_power_w")
        )
        limit = limits[index] if index < len(limits) else None
        if percent > BUSY_PERCENT:
            busy.append(f"{name} was {percent:.0f}% busy")
        elif np.isnan(percent) and limit and power > BUSY_POWER * limit:
            busy.append(f"{name} drew {power:.0f} of {limit:.0f} W")
        elif np.isnan(percent) and (np.isnan(power) or not limit):
            unknown.append(name)
    return Check(
        "other GPUs",
        False if busy else None if unknown else True,
        "warning",
        "; ".join(busy) or ("not measured" if unknown else f"{len(columns)} idle"),
        "stop what runs on them: it shares the machine's power, cooling and buses",
    )


def check_exporters(case: CaseData) -> Check | None:
    """Each exporter of the server's machine had enough new samples in the window, and its energy
    counters agree with its power.
    """
    machine = case.server_machine
    gpus = [f"gpu{gpu['index']}" for gpu in machine.get("gpus") or []]
    if not gpus and not machine.get("host_exporter"):
        return None
    sources = [(gpu, f"{gpu}_", resources.FEWEST_SAMPLES) for gpu in gpus]
    sources += [("CPU", "cpu_busy_s", 2)] if machine.get("host_exporter") else []
    few: dict[int, list[str]] = {}
    for name, prefix, least in sources:
        times = _sample_times(case, prefix)
        if not case.covers_window(times, least):
            few.setdefault(len(times), []).append(name)
    details = [f"{', '.join(names)}: {n} new samples in the window" for n, names in few.items()]
    for gpu in gpus:
        counted = case.slope(f"{gpu}_energy_j")
        power = resources.mean_sample(case, f"{gpu}_power_w")
        if not resources.is_plausible(counted, power):
            details.append(f"{gpu} counts {counted:,.0f} J per second, but draws {power:,.0f} W")
    return Check(
        "exporters",
        not details,
        "warning",
        "; ".join(details) or "enough samples",
        "keep the exporter running, let it measure each second (dcgm-exporter: --collect-interval"
        " 1000), or give a longer --duration",
    )


def _sample_times(case: CaseData, prefix: str) -> pd.Series:
    """The times in the window with a value in any telemetry column of this prefix."""
    inside = case.samples_inside
    columns = [name for name in map(str, inside) if name.startswith(prefix)]
    return inside["time_s"][inside[columns].notna().any(axis="columns")]


def check_gpu_clocks(case: CaseData) -> Check | None:
    """No GPU that the server uses was throttled in the window, and the SM clock's P5 to P95 span at
    most 10% of its median.
    """
    name, remedy = "GPU clocks", "cool the GPU, lock its clocks, and run nothing else on it"
    details = []
    for column in case.gpu_columns("throttle_reasons"):
        bits = int(
            np.bitwise_or.reduce(case.samples(column)[column].astype("int64").to_numpy(), initial=0)
        )
        details += [
            f"{column.split('_')[0]} throttled: {text}"
            for bit, text in THROTTLING.items()
            if bits & bit
        ]
    for column in case.gpu_columns("sm_clock_mhz"):
        clocks = case.samples(column)[column].to_numpy()
        low, middle, high = (stats.percentile(clocks, p) for p in (5, 50, 95))
        if high - low > 0.1 * middle:
            details.append(f"{column.split('_')[0]} clock {low:.0f} to {high:.0f} MHz")
    if not case.gpu_columns("sm_clock_mhz"):
        return None
    return Check(name, not details, "warning", "; ".join(details) or "no throttling", remedy)
