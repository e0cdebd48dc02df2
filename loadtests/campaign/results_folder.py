"""A campaign's folder: creates it, or continues an unfinished campaign."""

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from loadtests import schema
from loadtests.errors import UsageError
from loadtests.progress.watch import ProgressWatch
from loadtests.schema import CampaignFile, Case

# A command continues the campaign in --out only if these keys of campaign.json are equal.
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
    "targets",
    "prompts",
    "engine_device",
)


def open_campaign(folder: Path, campaign: CampaignFile) -> None:
    """Creates the folder, or checks that it holds the same campaign. Raises UsageError."""
    wanted = campaign.to_json()
    file = folder / "campaign.json"
    if file.exists():
        try:
            before = schema.read_json(file)
        except ValueError as error:
            raise UsageError(f"{file} is not JSON ({error}): choose another --out") from None
        if before.get("schema") != schema.SCHEMA:
            raise UsageError(
                f"{folder} was written with schema {before.get('schema')}, and this version writes"
                f" schema {schema.SCHEMA}: choose another --out"
            )
        # Do not compare the model's shape: that of a hub's model is known only after its download.
        before["model"] = (before.get("model") or {}) | {"shape": wanted["model"]["shape"]}
        before.setdefault("targets", {})
        before.setdefault("prompts", None)
        # adds the keys that are newer than this file, with their defaults
        before.setdefault("engine_device", wanted["engine_device"])
        before["plan"] = [Case(**case).as_dict() for case in before["plan"]]
        differing = [key for key in SAME if before.get(key) != wanted[key]]
        if differing:
            raise UsageError(
                f"{folder} is a campaign with another {', '.join(differing)}: repeat its command to"
                " continue it, or choose another --out"
            )
        # campaign.json would give the old machine and versions for the new rows
        if (folder / "cases.json").exists() and not any(folder.glob("cases/*")):
            raise UsageError(
                f"{folder} was published without its requests and cannot be continued: choose"
                " another --out"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty and has no campaign: choose another --out")
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    schema.write_json(file, wanted)


def lock_folder(folder: Path) -> IO[str]:
    """Locks the folder until this process ends, however it ends: a second process would set the
    running case aside as interrupted. Raises UsageError if the folder is locked.
    """
    handle = (folder / "campaign.json").open()
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise UsageError(
            f"another process is measuring {folder}: wait until it ends, or choose another --out"
        ) from None
    return handle


def unfinished_cases(folder: Path, cases: list[Case], watch: ProgressWatch) -> list[list[Case]]:
    """The planned cases without a result, as one round; no round if every case has one."""
    left = [case for case in cases if not _has_result(folder, case, watch)]
    if len(left) < len(cases):
        watch.say(f"continuing {folder}: {len(cases) - len(left)} of {len(cases)} cases are done")
    watch.plan(cases, done=len(cases) - len(left))
    return [left] if left else []


def finished_cases(folder: Path, watch: ProgressWatch) -> list[Case]:
    """The cases in the folder that have a result, planned or not. Sets the others aside."""
    for place in sorted((folder / "cases").glob("*")):
        if place.is_dir() and not (place / "run.json").exists():  # killed before its first stage
            kept = _set_aside(folder, place)
            watch.say(f"case {place.name} was interrupted; its files are now in {kept}")
    cases = [
        Case(**schema.read_json(file)["case"]) for file in sorted(folder.glob("cases/*/run.json"))
    ]
    return [case for case in cases if _has_result(folder, case, watch)]


def last_index(folder: Path) -> int:
    """The largest index of this campaign's cases, attempts included; 0 without cases."""
    files = [file for kind in ("cases", "attempts") for file in folder.glob(f"{kind}/*/run.json")]
    return max((schema.read_json(file)["case"]["index"] for file in files), default=0)


def _has_result(folder: Path, case: Case, watch: ProgressWatch) -> bool:
    """Whether a case has a result. Sets aside the files of a run that was killed, failed or
    skipped.
    """
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
        watch.say(
            f"case {case.index} ({case.folder}) {what}; its files are now in {kept}, and it runs"
            " again"
        )
    return False


def _set_aside(folder: Path, place: Path) -> str:
    """Moves a case's folder to attempts/, which `analysis` does not read. Returns its new name."""
    names = (f"attempts/{place.name}.{n}" for n in range(1, 1000))
    name = next(name for name in names if not (folder / name).exists())
    (folder / name).parent.mkdir(exist_ok=True)
    place.rename(folder / name)
    return name


class Rounds:
    """The state that a search for capacity and a gate share: the cases with a result and the last
    index. Sets interrupted cases aside.
    """

    def __init__(self, folder: Path, watch: ProgressWatch) -> None:
        self.watch = watch
        self.done = finished_cases(folder, watch)
        self.last_index = last_index(folder)

    def start(self, cases: Sequence[Case]) -> list[Case]:
        """Announces a round and returns its cases. They count as done when the next one starts."""
        self.watch.plan([*self.done, *cases], done=len(self.done), more=True)
        self.done += cases
        self.last_index += len(cases)
        return list(cases)
