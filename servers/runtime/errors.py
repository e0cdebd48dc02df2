"""Why a server could not be started."""


class LaunchError(RuntimeError):
    """Why a server does not run, in one sentence that names the remedy, and the last lines of
    its log.
    """
