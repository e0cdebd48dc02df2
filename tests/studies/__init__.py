"""Programs that measure rather than test and write into `results/`, and tests of their logic."""
