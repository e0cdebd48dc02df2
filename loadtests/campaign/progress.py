"""What the user sees while a campaign runs: a live line on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loadtests.generator.status import RUNNING, LoadStatus
from loadtests.schema import Case

# Only for the estimate of the remaining time, until a case has shown how long one takes: s for
# launch, verify, stop.
OVERHEAD_S = 35.0


class ProgressWatch:
    """Case i of n, stage, elapsed and remaining time, running throughput and P99."""

    def __init__(self, warmup_s: dict[str, float]):
        self.console = Console(highlight=False)
        self.cases: list[Case] = []
        self.more = False
        self.warmup_s = warmup_s  # by scenario
        self.began = time.monotonic()
        self.overheads: list[float] = []
        self.case: Case | None = None
        self.done = 0
        self.now: str = ""
        self.figures = ""
        self.previous: tuple[float, int] | None = None
        self.live = (
            Live(console=self.console, refresh_per_second=4, get_renderable=self._line)
            if self.console.is_terminal
            else None
        )

    def __enter__(self) -> "ProgressWatch":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live:
            self.case = None
            self.live.stop()

    def plan(self, cases: list[Case], done: int, more: bool = False) -> None:
        """The first `done` of the cases are. `more`: what they show decides whether others
        follow.
        """
        self.cases, self.done, self.more = cases, done, more

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def start(self, case: Case) -> None:
        self.case, self.case_began, self.figures = case, time.monotonic(), ""

    def stage(self, name: str) -> None:
        self.now, self.figures, self.previous = name, "", None
        if not self.live:
            self.say(f"{self._title()}: {name}")

    def load(self, status: LoadStatus) -> None:
        """Throughput is that of the time since the last call with a newer status."""
        if status.state != RUNNING or (self.previous and status.now_s - self.previous[0] < 0.5):
            return
        if self.previous:
            rate = (status.tokens - self.previous[1]) / (status.now_s - self.previous[0])
            window = status.window  # None until it is known when it opens
            part = (
                "warm-up"
                if window is None or status.now_s < window.start_s
                else "measuring"
                if status.now_s < window.end_s
                else "drain"
            )
            self.figures = (
                f"{part}, {status.rows} requests, {rate:,.0f} tokens/s, P99"
                f" {status.e2e_p99_s or 0:.2f} s"
            )
        self.previous = status.now_s, status.tokens

    def end(self, status: str) -> None:
        assert self.case is not None
        spent = time.monotonic() - self.case_began
        if status == "ok":  # one that was skipped, or failed early, says nothing about the others
            self.overheads.append(spent - self._load_s(self.case))
        self.done += 1
        self.say(f"{self._title()}: {status} ({spent:.0f} s)")

    def _load_s(self, case: Case) -> float:
        return self.warmup_s[case.scenario] + case.duration_s

    def _title(self) -> str:
        case = self.case
        assert case is not None
        load = f"{case.users} users" if case.users else f"{case.rate:g}/s"
        number = f"case {case.index}" + ("" if self.more else f" of {len(self.cases)}")
        return (
            f"{number}  {case.label} / {case.engine} / {case.scenario} {load}, run"
            f" {case.repetition}"
        )

    def _remaining_s(self) -> float:
        overhead = sum(self.overheads) / len(self.overheads) if self.overheads else OVERHEAD_S
        left = [self._load_s(case) + overhead for case in self.cases[self.done :]]
        # a case that takes longer than expected takes nothing from the others
        if left and self.case:
            left[0] = max(0.0, left[0] - (time.monotonic() - self.case_began))
        return sum(left)

    def _line(self) -> Text:
        if self.case is None:
            return Text("")
        left = f"about {self._remaining_s():.0f} s left" + (" in this round" if self.more else "")
        clock = f"{time.monotonic() - self.began:.0f} s elapsed, {left}"
        return Text(f"{self._title()}: {self.now}  {self.figures}\n{clock}", style="bold")
