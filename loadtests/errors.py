"""The one error that every command reports as a sentence and exit code 2."""


class UsageError(ValueError):
    """One sentence that names the remedy."""
