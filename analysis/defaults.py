"""Defaults that `--help` shows. It imports no library, so that the help appears at once."""

from pathlib import Path

SLO = "ttft=1000ms,tpot=100ms"
HEADROOM = 0.2  # share of each replica's capacity that is kept free
RESULTS = Path("results")
CLAIMS, INSTRUMENT = RESULTS / "claims", RESULTS / "instrument"
