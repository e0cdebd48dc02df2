"""A campaign's folder: made, or found and continued."""

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from loadtests import schema
from loadtests.errors import UsageError
from loadtests.progress.watch import ProgressWatch
from loadtests.schema import CampaignFile, Case

# A second command with the same --out continues the first one only if these keys of campaign.json
# are equal.
SAME = (
    "seed",
    "model",
    "scenarios",
    "simulated",
    "machine_share",
    "plan",
    "search",
    "gate",
    "max_errors",
)


def open_campaign(folder: Path, campaign: CampaignFile) -> None:
    """Creates it, or makes sure that the one that is there is the same. Raises UsageError."""
    wanted = campaign.to_json()
    file = folder / "campaign.json"
    if file.exists():
        try:
            before = schema.read_json(file)
        except ValueError as error:
            raise UsageError(f"{file} is not JSON ({error}): choose another --out") from None
        if before.get("schema") != schema.SCHEMA:
            raise UsageError(
                f"{folder} was written with schema {before.get('schema')}, this is"
                f" {schema.SCHEMA}: choose another --out"
            )
        # A model's shape does not make it another one: that of a hub's is known only once it has
        # been downloaded.
        before["model"] = (before.get("model") or {}) | {"shape": wanted["model"]["shape"]}
        # with keys that cases have got since, at their defaults
        before["plan"] = [Case(**case).as_dict() for case in before["plan"]]
        differing = [key for key in SAME if before.get(key) != wanted[key]]
        if differing:
            raise UsageError(
                f"{folder} is a campaign with another {', '.join(differing)}: repeat its command to"
                " continue it, or choose another --out"
            )
        # campaign.json would name the machine and the versions of the rows that are not here
        if (folder / "cases.json").exists() and not any(folder.glob("cases/*")):
            raise UsageError(
                f"{folder} is published without its requests and cannot be continued: choose"
                " another --out"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is neither empty nor a campaign: choose another --out")
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    schema.write_json(file, wanted)


def lock_folder(folder: Path) -> IO[str]:
    """Held until this process ends, however it ends. Raises UsageError: a second driver would take
    the running case for a dead one.
    """
    handle = (folder / "campaign.json").open()
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"{folder} is being measured by another process: wait for its end, or choose another"
            " --out"
        ) from None
    return handle


def unfinished_cases(folder: Path, cases: list[Case], watch: ProgressWatch) -> list[list[Case]]:
    """The planned cases that have no result yet, as one round; none if there are none left."""
    left = [case for case in cases if not _has_result(folder, case, watch)]
    if len(left) < len(cases):
        watch.say(f"continuing {folder}: {len(cases) - len(left)} of {len(cases)} cases are done")
    watch.plan(cases, done=len(cases) - len(left))
    return [left] if left else []


def finished_cases(folder: Path, watch: ProgressWatch) -> list[Case]:
    """Of the cases that are there, whether planned or not, those that have a result. The others are
    set aside.
    """
    for place in sorted((folder / "cases").glob("*")):
        if place.is_dir() and not (place / "run.json").exists():  # killed before it had begun
            watch.say(f"found {place.name}: was interrupted; kept as {_set_aside(folder, place)}")
    cases = [
        Case(**schema.read_json(file)["case"]) for file in sorted(folder.glob("cases/*/run.json"))
    ]
    return [case for case in cases if _has_result(folder, case, watch)]


def last_index(folder: Path) -> int:
    """The largest number that a case of this campaign had, 0 without cases."""
    files = [file for kind in ("cases", "attempts") for file in folder.glob(f"{kind}/*/run.json")]
    return max((schema.read_json(file)["case"]["index"] for file in files), default=0)


def _has_result(folder: Path, case: Case, watch: ProgressWatch) -> bool:
    """Sets aside what a run left that was killed, failed or skipped."""
    place = folder / "cases" / case.folder
    if not place.exists():
        return False
    file = place / "run.json"
    status = schema.read_json(file)["status"] if file.exists() else "running"
    if status == "ok":
        return True
    kept = _set_aside(folder, place)
    if not status.startswith("skipped"):
        what = "was interrupted" if status == "running" else status.splitlines()[0]
        watch.say(f"found case {case.index} ({case.folder}): {what}; kept as {kept}, and run again")
    return False


def _set_aside(folder: Path, place: Path) -> str:
    """Moves a case's folder to attempts/, which analysis does not read; its new name."""
    names = (f"attempts/{place.name}.{n}" for n in range(1, 1000))
    name = next(name for name in names if not (folder / name).exists())
    (folder / name).parent.mkdir(exist_ok=True)
    place.rename(folder / name)
    return name


class Rounds:
    """What a search for capacity and a gate have in common: the cases that have a result, and how
    many have been started. Sets aside what was interrupted.
    """

    def __init__(self, folder: Path, watch: ProgressWatch) -> None:
        self.watch = watch
        self.done = finished_cases(folder, watch)
        self.last_index = last_index(folder)

    def start(self, cases: Sequence[Case]) -> list[Case]:
        """Announces a round, whose cases count as done once the next one is asked for."""
        self.watch.plan([*self.done, *cases], done=len(self.done), more=True)
        self.done += cases
        self.last_index += len(cases)
        return list(cases)
