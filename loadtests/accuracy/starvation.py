"""Experiments with a starved load generator: too little CPU time makes a case invalid."""

import json
import shutil
import subprocess
import sys

from loadtests import schema
from loadtests.accuracy.calibration import SCENARIO, Results
from loadtests.accuracy.testbed import Testbed, burn_cores, pin_to_cores
from loadtests.campaign import analysis_process

# Options of the campaigns.
CAMPAIGN = (
    *("--servers", "fastapi_vllm", "--engines", "simulated"),
    *("--no-calibration", "--report", "none"),
)


def judge_healthy(bench: Testbed) -> Results:
    """A load generator with a core of its own is not flagged in any of 20 cases."""
    return _judge(bench, burners=0)


def judge_starved(bench: Testbed) -> Results:
    """A load generator that shares its core with a dozen busy processes is flagged in all of 20
    cases.
    """
    return _judge(bench, burners=12)


def _judge(bench: Testbed, burners: int) -> Results:
    """Runs cases on the simulated engine, and judges them with `python -m analysis checks`."""
    file = bench.scratch / "scenarios.toml"
    table = {**SCENARIO, "arrivals": "closed", "users": 64}
    file.write_text(
        "[short]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
    )
    verdicts = []
    for number in range(4 * bench.repeat):
        folder = bench.next_folder()
        # A campaign divides its own cores, and this process runs only on the load generator's.
        with (
            burn_cores(burners, bench.place.load_cores),
            pin_to_cores((*bench.place.server_cores, *bench.place.load_cores)),
        ):
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "loadtests",
                    *CAMPAIGN,
                    "--seed",
                    str(number),
                    "--scenarios-file",
                    str(file),
                    "--scenarios",
                    "short",
                    "--out",
                    str(folder),
                ],
                check=False,
                capture_output=True,
            )
        if done.returncode != 1:  # 1: the case is invalid, a result like any other
            done.check_returncode()
        checks = analysis_process.list_checks(folder)
        verdicts.append(
            {
                "flagged": [
                    check.name
                    for check in checks
                    if check.ok is False and check.severity == "invalid"
                ],
                "client": next(check.detail for check in checks if check.name == "client error"),
            }
        )
        for run in folder.glob("cases/*/run.json"):
            bench.note_readers(worker["reader"] for worker in schema.read_json(run)["load_workers"])
        shutil.rmtree(folder)
    return {
        "cases": len(verdicts),
        "flagged": sum("client error" in verdict["flagged"] for verdict in verdicts),
        "verdicts": verdicts,
    }
