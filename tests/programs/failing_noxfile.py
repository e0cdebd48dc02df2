"""A noxfile whose `bench` session fails after it has made its environment."""

import nox

nox.options.default_venv_backend = "virtualenv"


@nox.session
def bench(session: nox.Session) -> None:
    session.run("false")
