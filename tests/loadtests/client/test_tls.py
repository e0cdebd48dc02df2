"""Servers behind https are measured without the kernel's stamps; an untrusted certificate is a
named failure.
"""

from pathlib import Path

import pytest

from loadtests.client import http, response
from loadtests.client.blocking import make_blocking_connection
from loadtests.client.http import request_id
from loadtests.generator.locust_process import Workers
from tests.helpers.campaign_process import Bench
from tests.helpers.certificate import make_certificate
from tests.helpers.recording_server import CLOSED, Driven, Witness, drive, task_of
from tests.helpers.scripted_server import PATIENCE_S


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def under_load(folder: Path, certificate: Path) -> tuple[Driven, dict[str, list[float]]]:
    """Drives a load. Returns it with the times at which the server sent the events of each request,
    on the rows' clock.
    """
    with Witness(step_s=0.05) as witness:
        witness.use_tls(certificate)
        task = task_of(witness.url, CLOSED | {"output_tokens": [4, 6]}, users=2)
        driven = drive(folder, task, Workers())
        return driven, {
            asked.request_id: [at - task.clock_zero_s for at in asked.sent_s]
            for asked in witness.asked
        }


def test_a_server_behind_tls_is_measured(
    tmp_path: Path, marked: Bench, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    driven, sent_s = under_load(tmp_path / "load", certificate)
    assert len(driven.rows) > 4 and {
        (row["error"], row["answer"], row["http_status"]) for row in driven.rows
    } == {(None, "exact", 200)}
    for row in driven.rows:
        _head, *events = sent_s[request_id(0, row["request"])]
        assert (
            row["scheduled_s"] <= row["sent_s"] < row["first_s"] <= row["last_s"] <= row["done_s"]
        )
        assert all(
            sent <= came + 1e-6
            for sent, came in zip(events, [*row["token_s"], row["done_s"]], strict=True)
        )
        assert row["first_s"] < events[-1], (
            "the first token must not have the stamp of the last one's read"
        )
        assert (row["read_lag_mean_s"], row["read_lag_max_s"]) == (0, 0), "no stamps there"
        assert row["reads"] >= 1 and row["tokens"] == row["max_tokens"] == sum(row["token_n"])


def test_an_untrusted_certificate_is_a_named_failure(
    tmp_path: Path, marked: Bench, certificate: Path
) -> None:
    driven, _ = under_load(tmp_path / "load", certificate)
    [error] = {row["error"] for row in driven.rows}
    assert (
        error.startswith("connection failed: ")
        and "certificate verify failed: self-signed certificate" in error
    ), error
    assert {(row["sent_s"], row["http_status"], row["answer"]) for row in driven.rows} == {
        (None, None, "unchecked")
    }
    assert driven.said["locust_failures"] == len(driven.rows)


def test_a_connection_behind_tls_is_kept_and_bounded(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Witness() as witness:
        witness.use_tls(certificate)
        connection = make_blocking_connection(witness.url, PATIENCE_S)
        body = b'{"model": "m", "prompt": "baba", "max_tokens": 3, "stream": true}'
        connected = list[bool]()
        for _ in range(3):
            exchange = http.Exchange()
            connection.post("/v1/completions", body, exchange, "7")
            settled = response.parse_response(exchange)
            assert (settled.error, "".join(settled.token_text)) == (None, " babe babi babo")
            assert settled.token_s == [exchange.arrived[-1]] * 3 and set(exchange.lags) == {0.0}
            connected.append(exchange.connect_s is not None)
        assert connected == [True, False, False], "only the first request had to connect"
        assert connection.socket is not None, "kept"
        connection.close()
        witness.answer_s = 5.0
        connection, exchange = make_blocking_connection(witness.url, 0.3), http.Exchange()
        connection.post("/v1/completions", body, exchange)
        assert (exchange.error, connection.socket) == ("timeout", None)
