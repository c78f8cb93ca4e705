"""The domain of the stack's application at Dokploy: create it, remove it."""

from dataclasses import replace

from ..dokploy import Dokploy, Domain
from ..errors import OutcomeUnknown
from ..reporter import Reporter
from ..spec import Resources, StackSpec, mark_of
from .base import delete, failure_of_kind, find_applications, find_or_create, mark_changed, require_id


async def create(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Create the domain, or find it and correct its port and certificate.

    Raise Failure when another application at Dokploy has the host.
    """
    application_id = require_id(resources.application_id)
    https = spec.certificate != "none"
    # The router has a wildcard certificate already, so that no certificate resolver is named for it.
    certificate_type = "letsencrypt" if spec.certificate == "letsencrypt" else "none"

    async def find() -> Domain | None:
        domains = await dokploy.domains(application_id)
        existing = next((domain for domain in domains if domain.host == spec.host and domain.path == "/"), None)
        if existing is None:
            await _refuse_taken_host(dokploy, spec)
        return existing

    domain = await find_or_create(
        "domain",
        f"{spec.mark}/{spec.host}",
        find,
        lambda: dokploy.create_domain(
            application_id, spec.host, spec.port, https=https, certificate_type=certificate_type
        ),
        reporter,
    )
    if (domain.port, domain.https, domain.certificate_type) != (spec.port, https, certificate_type):
        await dokploy.update_domain(domain.id, spec.host, spec.port, https=https, certificate_type=certificate_type)
    return replace(resources, domain_id=domain.id)


async def _refuse_taken_host(dokploy: Dokploy, spec: StackSpec) -> None:
    """Raise Failure when an application outside the portal has the host.

    Dokploy accepts the same host for two applications without an error. The portal's database keeps the hosts of its
    own stacks apart.
    """
    if spec.host in await dokploy.foreign_hosts(mark_of(spec.installation)):
        raise failure_of_kind("HOST_IN_USE_AT_DOKPLOY")


async def remove(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Remove every domain of the stack's applications, and confirm it.

    Raise Failure when a recorded domain belongs to an application that lost the mark.
    """
    owned, changed = await find_applications(dokploy, spec, reporter)
    for application in owned:
        for domain in await dokploy.domains(application.id):
            await reporter.removing("domain", domain.id)
            await delete(dokploy.delete_domain, domain.id)
            if any(other.id == domain.id for other in await dokploy.domains(application.id)):
                raise OutcomeUnknown("Dokploy still lists the domain.")
            await reporter.removed("domain", domain.id)
    for application in changed:
        if any(domain.id in reporter.recorded_ids for domain in await dokploy.domains(application.id)):
            raise mark_changed("application", application, spec)
    await reporter.removed("domain")
    return replace(resources, domain_id=None)
