"""Dokploy's procedures by noun. The simulator has those that the portal's client calls, and four more.

project.update, environment.update, application.redeploy and settings.updateBuildsConcurrency are for tests, which
change the server's state with them as a user of Dokploy would.
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
