"""What the rounds of a search for capacity and those of a gate have in common: the cases so far,
and the number of the next one.
"""

from collections.abc import Sequence
from pathlib import Path

from loadtests.campaign import results_folder
from loadtests.campaign.progress import ProgressWatch
from loadtests.schema import Case


class Rounds:
    """Cases that have a result, and how many have been started. Sets aside what was interrupted."""

    def __init__(self, folder: Path, watch: ProgressWatch) -> None:
        self.watch = watch
        self.done = results_folder.finished_cases(folder, watch)
        self.last_index = results_folder.last_index(folder)

    def start(self, cases: Sequence[Case]) -> list[Case]:
        """Announces a round, whose cases count as done once the next one is asked for."""
        self.watch.plan([*self.done, *cases], done=len(self.done), more=True)
        self.done += cases
        self.last_index += len(cases)
        return list(cases)
