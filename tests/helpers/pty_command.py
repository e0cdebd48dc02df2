"""A command on a terminal of its own, as a person would run it."""

import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

PATIENCE_S = 60.0  # against hanging; not a measurement


class Terminal:
    """A command and its terminal. `text` has its output so far. `press` types a key, so Ctrl-C
    comes from the terminal and not as a signal from the test.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        cwd: Path,
        columns: int = 200,
        lines: int = 50,
    ):
        self.keyboard, screen = os.openpty()
        self.seen = bytearray()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment | {"TERM": "xterm", "COLUMNS": str(columns), "LINES": str(lines)},
            stdin=screen,
            stdout=screen,
            stderr=screen,
            close_fds=True,
            preexec_fn=lambda: os.login_tty(0),
        )
        os.close(screen)
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self.keyboard, 65536):
                self.seen += data
        except OSError:
            pass  # on Linux, when no process has the terminal open any more

    @property
    def text(self) -> str:
        return self.seen.decode(errors="replace")

    def press(self, key: bytes) -> None:
        os.write(self.keyboard, key)

    def wait(self) -> int:
        code = self.process.wait(PATIENCE_S)
        self.reader.join(PATIENCE_S)
        os.close(self.keyboard)
        return code
