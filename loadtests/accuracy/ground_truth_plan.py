"""The plan of the ground truth server: the times of its events, read from its command line."""

import argparse
import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

from loadtests.accuracy.ground_truth_http import MAX_TOKENS_PER_CHUNK


@dataclass(frozen=True)
class ResponsePlan:
    """The due times of a response's events, their delays, and the limit on concurrent responses."""

    ttft_ms: float = 50.0
    itl_ms: tuple[float, ...] = (10.0,)  # each applies for `step_s`, the last one to the end
    step_s: float = math.inf
    tokens_per_chunk: int = 1
    stall_every: int = 0  # in tokens; 0: never
    stall_ms: float = 0.0
    freeze_at_s: float = math.inf  # after the first request
    freeze_s: float = 0.0
    slots: float = math.inf

    def due_after(self, at_s: float, events: int, since_start_s: float) -> float:
        """The due time of a stream's next event, after `events` events of which the last was due at
        `at_s`. Before the first event, `at_s` is the start of the stream. `since_start_s`: from the
        server's first request to `at_s`. All in seconds.
        """
        size = self.tokens_per_chunk
        if events == 0:
            at_s += self.ttft_ms / 1e3
        else:
            step = int(since_start_s / self.step_s)
            at_s += self.itl_ms[min(step, len(self.itl_ms) - 1)] / 1e3 * size
        # an event of several tokens may include several pauses
        if self.stall_every:
            stalls = (events + 1) * size // self.stall_every - events * size // self.stall_every
            at_s += self.stall_ms / 1e3 * stalls
        return at_s


def parse_number(text: str) -> float:
    """Parses a finite number of at least 0. Raises argparse.ArgumentTypeError, as the other two
    do.
    """
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"invalid number value: {text!r}")


def parse_numbers(text: str) -> list[float]:
    try:
        return [parse_number(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"invalid numbers value: {text!r}") from None


def parse_whole_number(text: str) -> int:
    with contextlib.suppress(ValueError):
        if int(text) >= 0:
            return int(text)
    raise argparse.ArgumentTypeError(f"invalid whole_number value: {text!r}")


def parse_options() -> tuple[ResponsePlan, Path, int, argparse.ArgumentParser]:
    """Returns the plan, the log's path, the port, and the parser for reporting errors."""
    # without the usage, an error prints one sentence
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.accuracy.ground_truth_server",
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--log",
        type=Path,
        required=True,
        help="file for the times of all events, as JSON lines; written at the end",
    )
    add(
        "--port",
        type=parse_whole_number,
        default=0,
        help="port of 127.0.0.1; it is printed (default: a free port)",
    )
    add(
        "--ttft-ms",
        type=parse_number,
        default=50.0,
        help="time from a request to its first token, in ms (default: 50)",
    )
    add(
        "--itl-ms",
        "--itl-steps-ms",
        type=parse_numbers,
        default=[10.0],
        help=(
            "time between tokens, in ms; of several values, such as 10,5,2.5, each applies for"
            " --step-s, and the last one to the end (default: 10)"
        ),
    )
    add(
        "--step-s",
        type=parse_number,
        default=math.inf,
        help="duration of each of several --itl-steps-ms, from the first request, in seconds",
    )
    add(
        "--tokens-per-chunk",
        type=parse_whole_number,
        default=1,
        help="tokens per event; an event takes the time of its tokens (default: 1)",
    )
    add(
        "--stall-every",
        type=parse_whole_number,
        default=0,
        help="number of tokens from one pause of a stream to the next (default: no pauses)",
    )
    add(
        "--stall-ms",
        type=parse_number,
        default=0.0,
        help="duration of each pause, in ms (default: 0)",
    )
    add(
        "--freeze-at-s",
        type=parse_number,
        default=math.inf,
        help="freeze the server once, this many seconds after the first request (default: never)",
    )
    add(
        "--freeze-s",
        type=parse_number,
        default=0.0,
        help="duration of the freeze, in seconds (default: 0)",
    )
    add(
        "--slots",
        type=parse_whole_number,
        default=0,
        help="requests served at once; others wait in order (default: 0, no limit)",
    )
    options = parser.parse_args()
    if len(options.itl_ms) > 1 and not 0 < options.step_s < math.inf:
        parser.error("several --itl-steps-ms need --step-s")
    if not 1 <= options.tokens_per_chunk <= MAX_TOKENS_PER_CHUNK:
        parser.error(f"--tokens-per-chunk must be 1 to {MAX_TOKENS_PER_CHUNK}")
    plan = ResponsePlan(
        ttft_ms=options.ttft_ms,
        itl_ms=tuple(options.itl_ms),
        step_s=options.step_s,
        tokens_per_chunk=options.tokens_per_chunk,
        stall_every=options.stall_every,
        stall_ms=options.stall_ms,
        freeze_at_s=options.freeze_at_s,
        freeze_s=options.freeze_s,
        slots=options.slots or math.inf,
    )
    return plan, options.log, options.port, parser
