"""Show a deployment in the terminal as a table that is updated, or as plain lines if the output is not a terminal."""

from contextlib import nullcontext

from asgiref.sync import sync_to_async
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .identity import Credential
from .models import Deployment, Event
from .realtime import deployment_page, deployment_texts
from .realtime.hub import Hub

SIGNS = {
    "waiting": ("·", "dim"),
    "active": ("▸", "bold cyan"),
    "done": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "cancelled": ("–", "bold yellow"),
    "kept": ("✓", "dim green"),
    "skipped": ("–", "dim"),
    "undone": ("↶", "yellow"),
}
REFRESH_SECONDS = 0.25  # without Redis, no message reaches this process, so it polls the database


async def follow(deployment: Deployment, console: Console) -> Deployment:
    """Show the deployment until it ends. Return it in its final state."""
    credential = Credential(deployment.stack.owner_id)
    screen = Live(console=console, auto_refresh=False) if console.is_terminal else None
    watching = Hub.current().watch_deployment(deployment.pk, credential, "owner", viewer="terminal")
    async with watching as (watcher, topic):
        last_shown = 0
        with screen or nullcontext():
            while True:
                assert topic.deployment is not None
                for event in topic.events_after(last_shown):
                    last_shown = event.seq
                    if screen is None and event.type in ("phase", "log", "note") and not event.data.get("alive"):
                        console.print(_plain_text(event), highlight=False, markup=False, soft_wrap=True)
                if screen is not None:
                    screen.update(await sync_to_async(_table)(topic.deployment, topic.events), refresh=True)
                if topic.deployment.done:
                    break
                if not await watcher.wait_for_change(REFRESH_SECONDS):
                    await topic.refresh_frames()
    console.print(_result(topic.deployment))
    return topic.deployment


def _plain_text(event: Event) -> str:
    at = event.at.strftime("%H:%M:%S")
    if event.type == "log":
        return "\n".join(f"{at}  {event.phase:<24}        | {line}" for line in event.data["lines"])
    return f"{at}  {event.phase:<24} {event.progress:>3} %  {event.message}"


def _table(deployment: Deployment, events: list[Event]) -> Group:
    page = deployment_page.page_context(deployment, events, "owner")
    table = Table.grid(padding=(0, 2))
    for row in page["phases"]:
        sign, style = SIGNS[row.state]
        duration = f"{row.seconds:.1f} s" if row.seconds is not None else ""
        message = row.message if row.state in ("active", "failed") else ""
        table.add_row(Text(sign, style), Text(row.title, style), Text(duration, "dim"), Text(message[:80], "dim"))
    head = Text.assemble((deployment.stack.name, "bold"), "  ", page["headline"], "  ", (deployment.stack.url, "dim"))
    bar = Table.grid()
    if page["shows_progress"]:
        bar.add_row(ProgressBar(total=100, completed=page["progress"], width=40))
    return Group(head, bar, table)


def _result(deployment: Deployment) -> Text:
    if deployment.status == Deployment.Status.SUCCESS:
        return Text.assemble(("Live: ", "bold green"), deployment.stack.url)
    error = deployment.error or {}
    return Text.assemble(
        (f"Failed while {deployment_texts.failed_phase_title(deployment).lower()}: ", "bold red"),
        f"{error.get('message')} ({error.get('code')})\n{deployment.message}",
    )
