"""Dokploy's procedures by noun. The simulator has those that the portal's client calls, and four for tests.

With project.update, environment.update, application.redeploy and settings.updateBuildsConcurrency, tests change the
server's state as a user of Dokploy would.
"""

from . import applications, containers, deployments, domains, organizations, projects, web_server
from .registry import PROCEDURES

__all__ = [
    "PROCEDURES",
    "applications",
    "containers",
    "deployments",
    "domains",
    "organizations",
    "projects",
    "web_server",
]
