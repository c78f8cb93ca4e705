"""The health check of a deployment: probe the stack until the new version answers."""

import asyncio
import contextlib
from dataclasses import replace

from . import failures
from .dokploy import Dokploy
from .errors import DokployError, Failure, Unavailable
from .probe import ProbeResult, probe_stack
from .reporter import Reporter
from .resources.base import require_id
from .spec import Resources, StackSpec

CERTIFICATE_SECONDS = 180.0  # Let's Encrypt may need minutes


async def verify_health(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Probe the stack until its new version answers, and return the resources unchanged.

    The pause between two probes doubles from one second up to `spec.health_interval`. Raise Failure after
    `spec.health_timeout` seconds, or after CERTIFICATE_SECONDS while only the certificate is missing, if that is later.

    Docker starts the new container before it stops the previous one, and the previous one answers as long as the new
    one does not start. An answer therefore counts only if the previous container had stopped before the probe.
    """
    loop = asyncio.get_running_loop()
    started, attempt = loop.time(), 0
    while True:
        attempt += 1
        replaced = await _is_replaced(dokploy, resources)
        result = await probe_stack(spec)
        if result.answered and not replaced:
            summary = f"{result.summary}, {'perhaps ' if replaced is None else ''}from the previous version"
            result = replace(result, answered=False, summary=summary, code="NOT_REPLACED")
        await reporter.probe_steps(result.steps, attempt)
        await reporter.status(f"Attempt {attempt}: {result.summary}", attempt=attempt)
        if result.answered:
            return resources
        await _raise_if_dokploy_failed(dokploy, resources)
        limit = max(spec.health_timeout, CERTIFICATE_SECONDS) if result.waits_for_certificate else spec.health_timeout
        pause = min(spec.health_interval, 2.0 ** min(attempt - 1, 10))
        if loop.time() + pause - started > limit:
            if replaced is None and result.code == "NOT_REPLACED":
                return resources  # the stack answers: do not undo it because its version is unknown
            raise await _no_answer(dokploy, resources, result, attempt)
        await asyncio.sleep(pause)


async def _raise_if_dokploy_failed(dokploy: Dokploy, resources: Resources) -> None:
    """Raise Failure if the status of the Dokploy deployment has changed to error."""
    with contextlib.suppress(DokployError):  # whether the stack answers does not depend on Dokploy
        rows = await dokploy.dokploy_deployments(require_id(resources.application_id))
        own = next((row for row in rows if row.id == resources.dokploy_deployment_id), None)
        if own is not None and own.status == "error":
            raise failures.from_log(await dokploy.read_deploy_log(own.id))


async def _is_replaced(dokploy: Dokploy, resources: Resources) -> bool | None:
    """Return whether all containers of the previous version have stopped. None while Dokploy cannot tell."""
    if not resources.replaces:
        return True
    try:
        containers = await dokploy.containers(require_id(resources.app_name))
        if not containers and await dokploy.engine_error():  # containers go on running while the engine is down
            return None
    except Unavailable:
        return None
    except DokployError:  # asking again would not help
        return True
    return not any(c.name in resources.replaces and c.state == "running" for c in containers)


async def _no_answer(dokploy: Dokploy, resources: Resources, result: ProbeResult, attempt: int) -> Failure:
    """Return the failure for the last probe, with the state of the containers as its evidence."""
    containers = []
    with contextlib.suppress(DokployError):  # the evidence is optional
        containers = await dokploy.containers(require_id(resources.app_name))
    evidence = "; ".join(f"{container.name}: {container.status or container.state}" for container in containers)
    failure_kind = failures.get(result.code)
    text = f"{failure_kind.text} The last of {attempt} attempts: {result.summary}."
    return Failure(result.code, text, evidence=evidence[:300])
