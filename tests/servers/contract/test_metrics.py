"""What several worker processes count together."""

from pathlib import Path

from tests.helpers.python_program import output_of


def test_workers_are_added_up_also_while_another_has_only_just_begun(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").touch()  # as Prometheus' client makes it, before it gives it a size
    (tmp_path / "gauge_livesum_1.db").touch()
    (tmp_path / "notes.txt").write_text("not a worker's")
    for total in (3.0, 6.0):
        printed = output_of("count_tokens", PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
        assert f"serveoff_tokens_total {total}" in printed
