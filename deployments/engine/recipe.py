"""The phases of a deployment and of a removal, in order."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf

from .deploy import SETTLE_SECONDS, begin_removal, deploy, drain_deploys
from .dokploy import Dokploy
from .health import verify_health
from .reporter import Reporter
from .resources import application, domain, project
from .spec import Resources, StackSpec

Step = Callable[[Dokploy, StackSpec, Resources, Reporter], Awaitable[Resources]]
"""Change something at Dokploy and return the resources with the new ids. A step can safely be repeated."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a deployment or a removal.

    `progress` is the percentage at the phase's start. `undo` removes what `step` creates. `timeout` limits one attempt,
    in seconds; inf means that the step has a limit of its own. `attempts` is how often the step is tried in all when it
    fails with a temporary error. Waiting for an outage of Dokploy to end does not count as an attempt.
    """

    name: str
    title: str
    progress: int
    step: Step
    undo: Step | None = None
    timeout: float = 60.0
    attempts: int = 3


PHASES = (
    Phase("creating_project", "Creating the project", 10, project.create, project.remove),
    Phase("getting_environment", "Finding the environment", 20, project.get_environment),
    Phase("creating_application", "Creating the application", 35, application.create, application.remove),
    Phase("configuring_application", "Configuring the application", 50, application.configure),
    Phase("creating_domain", "Creating the domain", 65, domain.create, domain.remove),
    Phase("deploying", "Deploying", 85, deploy, drain_deploys, timeout=inf),
    Phase("verifying_health", "Checking health", 90, verify_health, timeout=900.0, attempts=1),
)

REMOVAL = (
    Phase("removing_domain", "Removing the domain", 25, begin_removal, timeout=SETTLE_SECONDS + 60),
    Phase("removing_application", "Removing the application", 50, application.remove),
    Phase("removing_project", "Removing the project", 75, project.remove),
)
RECIPES = {"deploy": PHASES, "redeploy": PHASES, "remove": REMOVAL}

RESTORING = ("configuring_application", "creating_domain", "deploying", "verifying_health")
RESTORE = tuple(phase for phase in PHASES if phase.name in RESTORING)
"""The phases that restore a stack's former version: those of a deployment, with the former spec."""
UNCHANGED = ("initializing", *(phase.name for phase in PHASES[: PHASES.index(RESTORE[0])]))
"""A redeployment that fails in one of these phases has changed nothing."""

TITLES = {
    "initializing": "Queued",
    **{phase.name: phase.title for phase in (*PHASES, *REMOVAL)},
    "completed": "Done",
    "rolling_back": "Rolling back",
    "failed": "Failed",
}
