"""The server in front of replicas: the same socket, signals and bounds as one without them, and no model."""

from starlette.types import ASGIApp

from llamita.server.listener import ListeningServer, config_of
from llamita.server.settings import ServerSettings


class FrontServer(ListeningServer):
    """Stops once its answers are over, or after drain_timeout."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        super().__init__(config_of(app, settings, settings.drain_timeout))

    def stop(self) -> None:
        """Let answers end and stop; the second time, at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
