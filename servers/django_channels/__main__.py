"""Daphne's command with two differences for which it has no option. On shutdown it finishes the
responses in progress, which Daphne cancels. A WebSocket message that is too long closes with 1009,
where Daphne drops the connection.
"""

import asyncio

from daphne.cli import CommandLineInterface
from daphne.server import Server
from daphne.ws_protocol import WebSocketProtocol
from twisted.internet.defer import Deferred

from servers.contract.metrics import wait_until_idle


class PatientDaphneServer(Server):
    def kill_all_applications(self) -> Deferred[None]:
        idling = Deferred.fromFuture(asyncio.ensure_future(wait_until_idle()))
        return idling.addCallback(lambda _: Server.kill_all_applications(self))


class PatientCommand(CommandLineInterface):
    server_class = PatientDaphneServer


if __name__ == "__main__":
    WebSocketProtocol.failByDrop = False
    PatientCommand.entrypoint()
