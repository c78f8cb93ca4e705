"""The domain of the stack's application at Dokploy: create it, remove it."""

from dataclasses import replace

from .. import failures
from ..dokploy import Dokploy, Domain
from ..reporter import Reporter
from ..spec import Resources, StackSpec, mark_of
from .application import APPLICATION
from .base import Resource, delete_and_confirm, ensure, ensure_absent, require_id
from .ownership import Found


class DomainResource(Resource[Domain]):
    """A domain with the stack's host, at the stack's application."""

    type = "domain"

    def mark(self, spec: StackSpec) -> str:
        """Return the stack's mark with the host: Dokploy keeps no description of a domain."""
        return f"{spec.mark}/{spec.host}"

    async def find(self, dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Found[Domain]:
        """Return the stack's domains, and the applications that lost the mark and have a recorded domain."""
        applications = await APPLICATION.find(dokploy, spec, resources, reporter)
        owned = [
            domain
            for application in applications.owned
            for domain in await dokploy.domains(application.id)
            if (domain.host, domain.path) == (spec.host, "/")
        ]
        changed = [
            application
            for application in applications.changed
            if reporter.records.has_any([domain.id for domain in await dokploy.domains(application.id)])
        ]
        return Found(owned, changed)

    async def before_create(self, dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> None:
        """Raise Failure when an application outside the portal has the host.

        Dokploy accepts the same host for two applications without an error. The portal's own stacks cannot
        share a host: a constraint of the database prevents it.
        """
        if spec.host in await dokploy.foreign_hosts(mark_of(spec.installation)):
            raise failures.failure("HOST_IN_USE_AT_DOKPLOY")

    async def create(self, dokploy: Dokploy, spec: StackSpec, resources: Resources) -> Domain:
        """Create the domain at the stack's application."""
        https, certificate_type = _encryption(spec)
        return await dokploy.create_domain(
            require_id(resources.application_id), spec.host, spec.port, https=https, certificate_type=certificate_type
        )

    async def delete(self, item: Domain, dokploy: Dokploy, spec: StackSpec, reporter: Reporter) -> None:
        """Delete the domain, so that nothing routes to the application."""

        async def is_listed(id: str) -> bool:
            return any(domain.id == id for domain in await dokploy.domains(item.application_id))

        await delete_and_confirm(self.type, item.id, dokploy.delete_domain, is_listed, reporter)
        await reporter.removed(self.type, item.id)


DOMAIN = DomainResource()


async def create(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Create the domain, or find it and correct its port and certificate.

    Raise Failure when an application outside the portal has the host.
    """
    domain = await ensure(DOMAIN, dokploy, spec, resources, reporter)
    https, certificate_type = _encryption(spec)
    if (domain.port, domain.https, domain.certificate_type) != (spec.port, https, certificate_type):
        await dokploy.update_domain(domain.id, spec.host, spec.port, https=https, certificate_type=certificate_type)
    return replace(resources, domain_id=domain.id)


async def remove(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Remove the stack's domain. Raise Failure when its application lost the mark."""
    await ensure_absent(DOMAIN, dokploy, spec, resources, reporter)
    return replace(resources, domain_id=None)


def _encryption(spec: StackSpec) -> tuple[bool, str]:
    """Return whether the domain has HTTPS, and the certificate resolver that Dokploy's router uses for it."""
    # A wildcard certificate is configured at the router itself: the domain needs no resolver.
    return spec.certificate != "none", "letsencrypt" if spec.certificate == "letsencrypt" else "none"
