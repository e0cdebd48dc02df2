"""What several worker processes count together."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
COUNT_ONE = (
    "from servers import metrics; metrics.TOKENS.inc(3); print(metrics.exposition('').decode())"
)


def test_workers_are_added_up_also_while_another_has_only_just_begun(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").touch()  # as Prometheus' client makes it, before it gives it a size
    (tmp_path / "gauge_livesum_1.db").touch()
    (tmp_path / "notes.txt").write_text("not a worker's")
    for total in (3.0, 6.0):
        done = subprocess.run(
            [sys.executable, "-c", COUNT_ONE],
            cwd=ROOT,
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert f"serveoff_tokens_total {total}" in done.stdout
