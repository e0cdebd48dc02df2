"""Counts three tokens and prints the metrics, as a server's worker process does."""

from servers.contract import metrics

if __name__ == "__main__":
    metrics.TOKENS.inc(3)
    print(metrics.render_metrics("").decode())
