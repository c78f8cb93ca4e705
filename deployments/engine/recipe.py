"""The phases of a deployment and of a removal, in order."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from .deploy import deploy
from .dokploy import Dokploy
from .health import verify_health
from .reporter import Reporter
from .resources import application, domain, project
from .resources.base import Resource
from .spec import Resources, StackSpec

Step = Callable[[Dokploy, StackSpec, Resources, Reporter], Awaitable[Resources]]
"""Change something at Dokploy and return the resources with the new ids. A step can safely be repeated."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a deployment or a removal.

    `progress` is the percentage at the phase's start. `resource` is the type of object that the phase creates or
    removes. `timeout` limits one attempt, in seconds; inf means that the step has a limit of its own. `attempts` is how
    often the step is tried in all when it fails with a temporary error. Waiting for an outage of Dokploy to end does
    not count as an attempt.
    """

    name: str
    title: str
    progress: int
    step: Step
    resource: Resource[Any] | None = None
    timeout: float = 60.0
    attempts: int = 3


PHASES = (
    Phase("creating_project", "Creating the project", 10, project.create, project.PROJECT),
    Phase("getting_environment", "Finding the environment", 20, project.get_environment),
    Phase("creating_application", "Creating the application", 35, application.create, application.APPLICATION),
    Phase("configuring_application", "Configuring the application", 50, application.configure),
    Phase("creating_domain", "Creating the domain", 65, domain.create, domain.DOMAIN),
    Phase("deploying", "Deploying", 85, deploy, timeout=inf),
    Phase("verifying_health", "Checking health", 90, verify_health, timeout=900.0, attempts=1),
)

# Also the undo of a deployment.
REMOVAL = (
    Phase("removing_domain", "Removing the domain", 25, domain.remove, domain.DOMAIN),
    Phase(
        "removing_application",
        "Removing the application",
        50,
        application.remove,
        application.APPLICATION,
        timeout=application.SETTLE_SECONDS + 60,
    ),
    Phase("removing_project", "Removing the project", 75, project.remove, project.PROJECT),
)
RECIPES = {"deploy": PHASES, "redeploy": PHASES, "remove": REMOVAL}

RESTORING = ("configuring_application", "creating_domain", "deploying", "verifying_health")
RESTORE = tuple(phase for phase in PHASES if phase.name in RESTORING)
"""The phases that restore a stack's previous version: those of a deployment, with the previous spec."""
UNCHANGED = ("initializing", *(phase.name for phase in PHASES[: PHASES.index(RESTORE[0])]))
"""A redeployment that fails in one of these phases has changed nothing."""

TITLES = {
    "initializing": "Queued",
    **{phase.name: phase.title for phase in (*PHASES, *REMOVAL)},
    "completed": "Done",
    "rolling_back": "Rolling back",
    "failed": "Failed",
}


def phase_of_resource(kind: str, resource_type: str) -> str | None:
    """Return the name of the phase that creates or removes objects of a type, in the recipe of this kind."""
    return next((p.name for p in RECIPES[kind] if p.resource and p.resource.type == resource_type), None)
