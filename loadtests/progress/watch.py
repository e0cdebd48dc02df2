"""The display while a campaign runs. A terminal shows a permanent row for each finished case, and
below them a live part: the running case and its stage, the cases to come and the remaining time.
Elsewhere, as in a log file or in CI, each case prints one line.
"""

import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from loadtests.generator.status import RUNNING, LoadStatus
from loadtests.progress.estimate import estimate_case_s
from loadtests.progress.rows import (
    CaseRow,
    RowLayout,
    crop,
    describe_case,
    format_line,
    format_span,
    split_reason,
)
from loadtests.schema import Case
from loadtests.workload.arrivals import ScenarioTable, longest_warm_up_s

LATE_S = 30.0  # a delay of a case that a log mentions
TO_COME = 4  # cases to come that have a row of their own
LOG_BYTES = 4096  # the end of a server's log that is searched for its last line
# The name of each stage for the user.
STAGES = {
    "prepare": "preparing the server",
    "launch": "waiting until the server is ready",
    "verify": "checking the responses",
    "load": "starting the load generator",
    "verify again": "checking the responses again",
    "stop": "stopping the server",
    "analyse": "computing the results of this case",
}
# Engines that load no model, or may load none.
WITHOUT_MODEL = ("simulated", "external")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# The prefix that loggers write before a message: process, level, date, time, module.
LOG_PREFIX = re.compile(
    r"^(?:\([^)]*\)\s*|(?:DEBUG|INFO|WARNING|ERROR):?\s+|\d+[-:/][-\d:.,/TZ]*\s+|\[[^]]*]\s*)+"
)


class ProgressWatch:
    """The progress of a campaign. `scenarios`: by name, those of its cases."""

    def __init__(self, scenarios: Mapping[str, ScenarioTable], on_gpu: bool = False):
        self.console = Console(highlight=False)
        self.scenarios, self.on_gpu = scenarios, on_gpu
        self.cases: list[Case] = []
        self.more = False
        self.done = 0
        self.began = self.case_began = self.stage_began = time.monotonic()
        self.case: Case | None = None
        self.took: list[tuple[Case, float]] = []  # the cases that ended ok, with their seconds
        self.planned_s = self.reported_late_s = 0.0  # of the running case
        self.stage_name = ""
        self.now = ""  # the current activity; below it: its figures, and the cause of a wait
        self.figures = self.waits = ""
        self.log: Path | None = None
        self.previous: LoadStatus | None = None
        self.ends: float | None = None  # when the window closes, on time.monotonic()
        self.rows_since_heading: int | None = None
        self.waiting_s = 0.0  # estimated duration of an activity between cases
        # with FORCE_COLOR, rich treats a file as a terminal
        live = self.console.is_interactive and sys.stdout.isatty()
        # It runs on the load generator's cores: two frames per second take 0.2% of one.
        self.live = (
            Live(
                console=self.console,
                refresh_per_second=2,
                get_renderable=self._frame,
                transient=True,
                vertical_overflow="crop",
            )
            if live
            else None
        )

        self.ended = threading.Event()

    def __enter__(self) -> "ProgressWatch":
        if self.live:
            self.live.start()
        else:
            threading.Thread(target=self._report_delays, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.ended.set()
        if self.live:
            self.live.stop()

    def plan(self, cases: list[Case], done: int, more: bool = False) -> None:
        """Announces the cases, of which the first `done` are done. `more`: others may follow,
        depending on their results.
        """
        first = not self.cases
        self.cases, self.done, self.more = cases, done, more
        if first and len(cases) > done and not self.live:
            which = "the first round has " if more else ""
            count = len(cases) - done
            self.say(
                f"{which}{count} case{'s' * (count != 1)}, about {format_span(self._left_s())};"
                " each prints a line when it ends"
            )

    def say(self, text: str, in_log: bool = True) -> None:
        """Prints a line; with `in_log`, also without a terminal."""
        if not self.live and not in_log:
            return
        self.console.print(text, markup=False, soft_wrap=not self.live)

    @contextmanager
    def waiting(self, what: str, about_s: float) -> Iterator[None]:
        """Shows an activity between cases, with an estimate of its duration."""
        if not self.live:
            self.say(f"{what}: about {format_span(about_s)}")
        self.stage(what)
        self.waiting_s = about_s
        yield
        self.now, self.waiting_s = "", 0.0

    def start(self, case: Case) -> None:
        self.case_began, self.ends, self.stage_name = time.monotonic(), None, ""
        self.planned_s, self.reported_late_s = self._case_s(case), 0.0
        self.case = case

    def stage(self, name: str, log: Path | None = None) -> None:
        """Shows a stage. `log`: of the server that this stage waits for."""
        self.stage_name, self.now, self.log = name, STAGES.get(name, name), log
        if name == "launch" and self.case and self.case.engine not in WITHOUT_MODEL:
            self.now = "waiting until the server has loaded its model"
        self.figures, self.waits, self.previous = "", "", None
        self.stage_began = time.monotonic()
        if self.live:
            self.live.refresh()  # otherwise a short stage may never show

    def load(self, status: LoadStatus) -> None:
        """Shows the status of the load. Throughput is measured since the previous status."""
        before = self.previous
        if status.state != RUNNING or (before and status.now_s - before.now_s < 0.5):
            return
        self.now, self.waits = self._describe_load(status)
        if status.window:
            self.ends = time.monotonic() + status.window.end_s - status.now_s
        rate = (status.tokens - before.tokens) / (status.now_s - before.now_s) if before else None
        self.figures = ", ".join(
            [
                f"{status.rows:,} requests",
                *([f"{status.locust_failures:,} failed"] if status.locust_failures else []),
                *([] if rate is None else [f"{rate:,.0f} tokens/s"]),
                *([f"E2E P99 {status.e2e_p99_s:.2f} s"] if status.e2e_p99_s else []),
            ]
        )
        self.previous = status

    def _describe_load(self, status: LoadStatus) -> tuple[str, str]:
        """Returns the load's current phase, and the cause of a wait."""
        window, since_s = status.window, status.now_s - status.began_s
        if window is None or status.now_s < window.start_s:
            assert self.case is not None
            late = since_s > self.scenarios[self.case.scenario]["warmup_s"]
            unsteady = status.unsteady
            waits = f"waiting until the load is steady: {unsteady}" if unsteady else ""
            return f"warm-up, {since_s:.0f} s", waits if late else ""
        if status.now_s < window.end_s:
            length_s = window.end_s - window.start_s
            return f"measuring, {status.now_s - window.start_s:.0f} of {length_s:.0f} s", ""
        left = status.sent - status.rows
        return "drain", f"waiting for the last {left} response{'s' * (left != 1)}" if left else ""

    def end(self, status: str, row: CaseRow | None = None) -> None:
        """Shows the result of the running case; without a row, its status."""
        assert self.case is not None
        case, spent = self.case, time.monotonic() - self.case_began
        if status == "ok":  # a case that was skipped or failed early is shorter than the others
            self.took.append((case, spent))
        self.done += 1
        self.case, self.now = None, ""
        if self.live:
            self._print_row(case, status, row)
        else:
            number = self._number(case)
            text, _, log = format_line(case, status, row).partition("\n")
            left = f"; {self._describe_left()}" if self.done < len(self.cases) else ""
            self.say(f"{number}  {describe_case(case)}: {text} ({spent:.0f} s{left})")
            if log:
                self.say(log)

    def _number(self, case: Case) -> str:
        return f"case {case.index}" + ("" if self.more else f" of {len(self.cases)}")

    def _report_delays(self) -> None:
        """Without a terminal, prints a line when the running case is late, and again each time when
        its delay has doubled: the estimates in the log would be wrong without a word.
        """
        while not self.ended.wait(5):
            if line := self._describe_delay():
                self.say(line)

    def _describe_delay(self) -> str:
        """The line on the running case, or an empty text if none is due."""
        case = self.case
        if case is None or not self.now:
            return ""
        late_s = time.monotonic() - self.case_began + self._case_left_s(case) - self.planned_s
        if late_s < max(LATE_S, 0.25 * self.planned_s, 2 * self.reported_late_s):
            return ""
        self.reported_late_s = late_s
        activity = self.waits or f"{self.now}, {time.monotonic() - self.stage_began:.0f} s"
        return (
            f"{self._number(case)} takes longer than planned: {activity}; {self._describe_left()}"
        )

    def _print_row(self, case: Case, status: str, row: CaseRow | None) -> None:
        layout = self._layout()
        if self.rows_since_heading is None or self.rows_since_heading > self.console.height - 10:
            self._print_text(layout.heading(), "dim")
            self.rows_since_heading = 0
        self.rows_since_heading += 1
        text = layout.row(case, status, row)
        word, reason = split_reason(status, row)
        self._print_text(text, "red" if word not in ("ok", "skipped") else "")
        if not text.endswith(reason):  # the row is too narrow for it
            lines = "\n".join(line.strip() for line in reason.splitlines())
            self.console.print(Padding(Text(lines, overflow="fold"), (0, 0, 0, 4), expand=False))

    def _print_text(self, text: str, style: str) -> None:
        self.console.print(Text(text, style), no_wrap=True, overflow="ellipsis", crop=True)

    def _layout(self) -> RowLayout:
        return RowLayout.of(self.cases, self.console.width)

    def _case_s(self, case: Case) -> float:
        """Estimates how long a case takes, from finished cases like it."""
        same = [s for other, s in self.took if other.scenario == case.scenario]
        if same:
            return sum(same) / len(same)
        more = [s - self._estimate_s(other) for other, s in self.took] or [0.0]
        return self._estimate_s(case) + sum(more) / len(more)

    def _estimate_s(self, case: Case) -> float:
        return estimate_case_s(case, self.scenarios[case.scenario], self.on_gpu)

    def _case_left_s(self, case: Case) -> float:
        """Estimates how long the running case still takes: the rest of its planned time, or what is
        certain to come if that is more.
        """
        now, scenario = time.monotonic(), self.scenarios[case.scenario]
        least_s, ends, usual_s = 0.0, self.ends, float(scenario["warmup_s"])
        if ends:
            least_s = ends - now
        elif self.stage_name in ("prepare", "launch", "verify"):
            least_s = usual_s + case.duration_s
        elif self.stage_name == "load":
            waited_s, longest_s = now - self.stage_began, longest_warm_up_s(scenario)
            # a warm-up that is late is expected to take as long again, up to its longest time
            rest_s = min(abs(waited_s - usual_s), max(0.0, longest_s - waited_s))
            least_s = rest_s + case.duration_s
        return max(0.0, self.planned_s - (now - self.case_began), least_s)

    def _left_s(self) -> float:
        running = self.case  # another thread may end it meanwhile
        left = [self._case_s(case) for case in self.cases[self.done :]]
        if left and running:
            # a case that takes longer than expected does not shorten the others
            left[0] = self._case_left_s(running)
        return sum(left) + max(0.0, self.waiting_s - (time.monotonic() - self.stage_began))

    def _describe_left(self) -> str:
        where = " of this round" if self.more else ""
        return f"about {format_span(self._left_s())} left{where}"

    def _frame(self) -> Text:
        """The live part, cropped to the size of the terminal."""
        width, lines = self.console.width, self._lines()
        text = Text(no_wrap=True, overflow="ellipsis", end="")
        for number, (line, style) in enumerate(lines[: self.console.height - 1]):
            text.append(crop(line, width) + "\n" * (number < len(lines) - 1), style)
        return text

    def _lines(self) -> list[tuple[str, str]]:
        """The lines of the live part, each with its style."""
        if not self.now:
            return []
        lines, layout, coming = [], self._layout(), self.cases[self.done :]
        clock = "" if self.previous else f", {time.monotonic() - self.stage_began:.0f} s"
        if self.case:
            coming = coming[1:]
            lines.append((f"{layout.start(self.case)} {self.now}{clock}", "bold"))
        else:
            lines.append((f"{self.now}{clock}", "bold"))
        below = filter(None, (self.figures, self.waits, self._last_log_line()))
        lines += [(f"    {text}", "") for text in below]
        room = min(TO_COME, self.console.height - len(lines) - 3)  # leaves room for the lines below
        rows = coming if len(coming) <= room + 1 else coming[: max(0, room)]
        lines += [(f"{layout.start(case)} to come", "dim") for case in rows]
        if len(rows) < len(coming):
            lines.append((f"    and {len(coming) - len(rows)} more to come", "dim"))
        done = f"{self.done} of {len(self.cases)} cases done" if not self.more else ""
        left = self._describe_left() + ("; others may follow" if self.more else "")
        times = (f"{format_span(time.monotonic() - self.began)} elapsed", left)
        lines.append((", ".join(filter(None, (done, *times))), "bold"))
        return lines

    def _last_log_line(self) -> str:
        """The last line in the log of the server that the stage waits for."""
        try:
            if self.log is None or not self.log.exists():
                return ""
            with self.log.open("rb") as handle:
                handle.seek(max(0, self.log.stat().st_size - LOG_BYTES))
                text = handle.read().decode(errors="replace")
        except OSError:
            return ""
        lines = [ESCAPES.sub("", line).strip() for line in re.split(r"[\r\n]+", text)]
        last = next((line for line in reversed(lines) if re.search(r"\w", line)), "")
        return f"its log: {LOG_PREFIX.sub('', last) or last}" if last else ""
