"""A deployment and a removal, in order: a name, a sentence, the progress at its start, what does it, what undoes it."""

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


@dataclass(frozen=True, slots=True)
class Phase:
    """timeout: seconds for one attempt, inf where the step has a limit of its own; attempts: how often an unclear
    outcome is looked into before giving up."""

    name: str
    title: str
    progress: int
    step: Step
    undo: Step | None = None
    timeout: float = 60.0
    attempts: int = 3


PHASES = (
    Phase("creating_project", "Creating the project", 10, project.create, project.remove),
    Phase("getting_environment", "Finding its environment", 20, project.get_environment),
    Phase("creating_application", "Creating the application", 35, application.create, application.remove),
    Phase("configuring_application", "Configuring the application", 50, application.configure),
    Phase("creating_domain", "Creating the domain", 65, domain.create, domain.remove),
    Phase("deploying", "Deploying", 85, deploy, drain_deploys, timeout=inf),
    Phase("verifying_health", "Checking that it answers", 90, verify_health, timeout=900.0, attempts=1),
)

REMOVAL = (
    Phase("removing_domain", "Removing the domain", 25, begin_removal, timeout=SETTLE_SECONDS + 60),
    Phase("removing_application", "Removing the application", 50, application.remove),
    Phase("removing_project", "Removing the project", 75, project.remove),
)
RECIPES = {"deploy": PHASES, "redeploy": PHASES, "remove": REMOVAL}

RESTORING = ("configuring_application", "creating_domain", "deploying", "verifying_health")
# What brings back the settings of a stack that ran before: the same steps, with the former spec. A redeploy that failed
# before the first of them has changed nothing.
RESTORE = tuple(phase for phase in PHASES if phase.name in RESTORING)
UNCHANGED = ("initializing", *(phase.name for phase in PHASES[: PHASES.index(RESTORE[0])]))

TITLES = {
    "initializing": "Waiting to begin",
    **{phase.name: phase.title for phase in (*PHASES, *REMOVAL)},
    "completed": "Done",
    "rolling_back": "Undoing",
    "failed": "Failed",
}
