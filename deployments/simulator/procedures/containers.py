"""Docker containers."""

from ..server import DokployServer
from ..store import Row
from .registry import NO_CONTENT, TEXT, query


@query("docker.getContainersByAppNameMatch", appName=TEXT)
def list_containers(server: DokployServer, given: Row) -> object:
    """Return the containers whose name has this prefix."""
    return [server.engine.describe(container) for container in server.engine.containers(given["appName"])]


@query("docker.getConfig", containerId=TEXT)
def inspect(server: DokployServer, given: Row) -> object:
    """Return `docker inspect` of a service. The body is empty for an unknown name."""
    return server.engine.inspect_service(given["containerId"]) or NO_CONTENT
