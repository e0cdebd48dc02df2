"""The error for a server that cannot be started."""


class LaunchError(RuntimeError):
    """The message is one sentence that names the remedy, and the last lines of the server's log if
    it has one.
    """
