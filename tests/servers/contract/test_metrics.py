"""The counters of several worker processes."""

from pathlib import Path

from tests.helpers.python_program import output_of


def test_workers_are_summed_while_another_is_just_starting(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").touch()  # Prometheus' client creates it empty
    (tmp_path / "gauge_livesum_1.db").touch()
    (tmp_path / "notes.txt").write_text("not a worker's")
    for total in (3.0, 6.0):
        printed = output_of("count_tokens", PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
        assert f"serveoff_tokens_total {total}" in printed
