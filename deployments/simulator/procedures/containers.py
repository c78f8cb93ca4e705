"""Docker containers."""

from ..server import DokployServer
from ..store import Row
from .registry import TEXT, query


@query("docker.getContainersByAppNameMatch", appName=TEXT)
def list_containers(server: DokployServer, given: Row) -> object:
    """Return the containers whose name has this prefix."""
    return [server.engine.describe(container) for container in server.engine.containers(given["appName"])]
