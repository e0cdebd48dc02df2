"""The error that every command reports in one sentence, with exit code 2."""


class UsageError(ValueError):
    """One sentence that states the problem and the remedy."""
