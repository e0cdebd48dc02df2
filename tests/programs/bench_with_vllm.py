"""Runs vLLM's `bench serve` against servers. Arguments: a tokenizer's folder, URLs of servers."""

import argparse
import sys

from vllm.benchmarks.serve import add_cli_args
from vllm.benchmarks.serve import main as bench_serve

LOAD = (
    *("--dataset-name", "random", "--random-input-len", "12", "--random-output-len", "8"),
    *("--num-prompts", "6", "--ignore-eos", "--max-concurrency", "2", "--disable-tqdm"),
)


def main(tokenizer: str, urls: list[str]) -> None:
    for url in urls:
        parser = argparse.ArgumentParser()
        add_cli_args(parser)
        target = ("--backend", "openai", "--base-url", url)
        model = ("--model", "serveoff-tiny", "--tokenizer", tokenizer)
        found = bench_serve(parser.parse_args([*target, *model, *LOAD]))
        counts = found["completed"], found["failed"], found["total_output_tokens"]
        assert counts == (6, 0, 48), found
        print("peer is content with", url)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
