"""A server that answers as the oracle expects and records its requests, and loads that run against
it without a campaign.
"""

import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from loadtests import schema
from loadtests.generator import locust_process
from loadtests.generator.status import LoadStatus
from loadtests.generator.task import LoadTask
from servers.contract import api, oracle
from servers.profile.access import Access

KINDS = {api.COMPLETIONS: api.CompletionRequest, api.CHAT_COMPLETIONS: api.ChatCompletionRequest}
SCENARIO = {
    "arrivals": "poisson",
    "endpoint": "completions",
    "prompt_tokens": [4, 16],
    "output_tokens": [2, 4],
    "warmup_s": 0.5,
    "warmup_max_s": 0.5,
    "drain_s": 20,
    "timeout_s": 30,
}
CLOSED = SCENARIO | {"arrivals": "closed", "endpoint": "chat"}
SEED = "1/test/1"


@dataclass
class Asked:
    """One request as it arrived, on the test's clock, with its response. `unanswered` counts the
    requests in flight, this one included.
    """

    at_s: float
    request_id: str
    body: dict[str, Any]
    unanswered: int
    sent_s: list[float] = field(default_factory=list)  # just before each event was sent
    said: str = ""
    prompt_tokens: int = 0


class Witness(ThreadingHTTPServer):
    """Waits `answer_s` before each response and `step_s` before each of its events. Responds with
    500 where `fails` is true, and closes connections that are idle for `idle_s`.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        answer_s: float = 0.0,
        step_s: float = 0.0,
        fails: Callable[[Asked], bool] = lambda asked: False,
        idle_s: float | None = None,
    ):
        self.idle_s = idle_s
        self.answer_s, self.step_s, self.fails = answer_s, step_s, fails
        self.asked: list[Asked] = []
        self.unanswered = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> "Witness":
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        pass  # the client has gone, for example killed

    def use_tls(self, certificate: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://localhost:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Witness

    def setup(self) -> None:
        self.timeout = self.server.idle_s
        super().setup()

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = api.parse_request(KINDS[self.path], body)
        with server.lock:
            server.unanswered += 1
            asked = Asked(
                time.perf_counter(),
                self.headers["X-Request-Id"],
                json.loads(body),
                server.unanswered,
            )
            server.asked.append(asked)
        time.sleep(server.answer_s)
        with server.lock:  # before the client gets the response
            server.unanswered -= 1
        if server.fails(asked):
            self.reply(asked, 500, "application/json", [b"{}"])
        else:
            self.reply(asked, 200, api.SSE_CONTENT_TYPE, self.events(request, asked))

    def reply(self, asked: Asked, status: int, content_type: str, pieces: list[bytes]) -> None:
        head = (
            f"HTTP/1.1 {status} Status\r\nContent-Type: {content_type}\r\nContent-Length:"
            f" {sum(map(len, pieces))}\r\n\r\n".encode()
        )
        for piece in [head, *pieces] if self.server.step_s else [head + b"".join(pieces)]:
            time.sleep(0.0 if piece is head else self.server.step_s)
            asked.sent_s.append(time.perf_counter())
            self.wfile.write(piece)

    def events(self, request: api.Request, asked: Asked) -> list[bytes]:
        text = (
            request.prompt
            if isinstance(request, api.CompletionRequest)
            else oracle.chat_text([(message.role, message.content) for message in request.messages])
        )
        words = oracle.continuation_words(text, request.max_tokens)
        asked.said, asked.prompt_tokens = " ".join(words), oracle.count_tokens(text)
        outcome = api.Outcome(asked.prompt_tokens, len(words), "length", 0, 0, 0)
        answer = api.CompletionResponse(request, "m")
        return [answer.event(item).encode() for item in [*(f" {word}" for word in words), outcome]]


@dataclass
class Driven:
    """The results of a load. `said` is load.json as on disk."""

    said: dict[str, Any]
    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def window(self) -> tuple[float, float]:
        return self.said["window"]["start_s"], self.said["window"]["end_s"]

    def in_window(self) -> list[dict[str, Any]]:
        start_s, end_s = self.window
        return sorted(
            (row for row in self.rows if start_s <= row["scheduled_s"] < end_s),
            key=lambda row: row["scheduled_s"],
        )


def task_of(url: str, scenario: dict[str, Any], **more: Any) -> LoadTask:
    task = LoadTask(
        base_url=url,
        model="m",
        planted=True,
        scenario=scenario,
        scenario_name="test",
        users=None,
        rate=None,
        duration_s=1.0,
        clock_zero_s=time.perf_counter(),
        seed=SEED,
    )
    return replace(task, **more)


def drive(
    folder: Path,
    task: LoadTask,
    workers: locust_process.Workers,
    watch: Callable[[LoadStatus | None], None] = lambda status: None,
    web_port: int | None = None,
    access: Access | None = None,
) -> Driven:
    """Run a load to its end. Raises LoadFailed, with the rows left in the folder."""
    folder.mkdir()
    with locust_process.start_load(folder, task, workers, web_port=web_port, access=access) as load:
        locust_process.wait_for_load(
            load, folder, locust_process.longest_load_s(task, workers), watch
        )
    said = schema.read_json(folder / "load.json")
    return Driven(said, folder, schema.read_lines(folder / "requests.jsonl"))
