"""Dokploy's web server: its version, settings and infrastructure."""

from ..server import DokployServer
from ..store import Row, now
from ..zod import Field
from .registry import mutation, query, require_admin


@query("settings.getDokployVersion")
def get_version(server: DokployServer, given: Row) -> object:
    return server.settings.version


@query("settings.getWebServerSettings")
def get_settings(server: DokployServer, given: Row) -> object:
    return server.store.settings["server"]


@mutation("settings.updateBuildsConcurrency", buildsConcurrency=Field("number", minimum=1, maximum=100))
def update_concurrency(server: DokployServer, given: Row) -> object:
    """Set how many deploy jobs run at a time. The result is from Dokploy's source, not recorded."""
    require_admin(server)
    server.store.settings.change("server", **given, updatedAt=now())
    return True


@query("settings.checkInfrastructureHealth")
def infrastructure_health(server: DokployServer, given: Row) -> object:
    require_admin(server)
    return {name: server.engine.infrastructure_health(f"dokploy-{name}") for name in ("postgres", "traefik")}
