"""Requests for a deployment, redeployment, retry or removal. Nothing here connects to Dokploy.

A request creates a row that a worker claims, or raises Refusal. Of two concurrent
requests for the same stack, only one creates a row.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction

from .deployment import RESUMABLE, Deployment
from .external_resource import ExternalResource
from .refusal import Refusal
from .stack import Stack, host_of
from .template import Template


@dataclass(frozen=True, slots=True)
class DeploymentRequest:
    """A user's request for a deployment or redeployment.

    `parameters` are validated (Template.clean_answers). `address` is the IP address of an anonymous caller. `owner` is
    the owner of a new stack; None means the user. A second request of the same caller with the same idempotency key
    returns the first deployment.
    """

    user: Any
    template: Template
    parameters: dict[str, Any]
    via: str
    idempotency_key: str | None = None
    address: str | None = None
    owner: Any = None

    def deploy(self, name: str) -> Deployment:
        """Create a stack with this name and deploy it, or redeploy the user's own stack of that name."""
        if earlier := self._earlier():
            return earlier
        Stack.validate_name(name)
        return get_or_create_deployment(lambda: self._deploy(name), self._earlier)

    def redeploy(self, stack: Stack) -> Deployment:
        """Redeploy this stack, for its owner or an operator (Stack.visible_to)."""
        if earlier := self._earlier():
            return earlier
        return get_or_create_deployment(lambda: self._redeploy(stack), self._earlier)

    def _deploy(self, name: str) -> Deployment:
        owner = self.owner or self.user
        stack = Stack.objects.existing().filter(name=name).first()
        if stack is not None:
            if stack.owner_id != owner.pk or owner.username == settings.OPEN_USERNAME:
                raise Refusal("NAME_TAKEN", f"“{name}” is taken. Choose another name.", field="name")
            return self._redeploy(stack)
        if Deployment.objects.in_progress().count() >= settings.PORTAL_WAITING:
            raise Refusal("QUOTA", "Too many deployments are queued. Try again in a minute.", retry_after=60)
        Stack.require_quota(owner, self.address)
        url = Stack.address_of(name)
        stack = Stack.objects.create(
            name=name, owner=owner, template=self.template, url=url, host=host_of(url), requested_from=self.address
        )
        deployment = self._new(stack)
        deployment.write_spec(self.template, self.parameters)
        return deployment.enqueue()

    def _redeploy(self, stack: Stack) -> Deployment:
        # Read again: the stack may have changed. no_key: a stronger lock would deadlock with a concurrent removal.
        stack.refresh_from_db(from_queryset=Stack.objects.select_for_update(no_key=True))
        stack.require_idle()
        deployment = self._new(stack)
        if deployment.last_successful() is not None:  # after a failure, restore the stack instead of removing it
            deployment.kind = Deployment.Kind.REDEPLOY
        deployment.carry_over_app_name()
        deployment.write_spec(self.template, self.parameters)
        return deployment.enqueue()

    def _new(self, stack: Stack) -> Deployment:
        return Deployment(
            stack=stack,
            template=self.template,
            requested_by=self.user,
            via=self.via,
            idempotency_key=self._digest(),
        )

    def _earlier(self) -> Deployment | None:
        """Return the deployment that this caller requested with the same idempotency key."""
        digest = self._digest()
        return Deployment.objects.filter(requested_by=self.user, idempotency_key=digest).first() if digest else None

    def _digest(self) -> str | None:
        """Return a digest of the caller and the key. Anonymous callers are told apart by address."""
        if not self.idempotency_key:
            return None
        caller = self.address or "" if self.user.username == settings.OPEN_USERNAME else ""
        return hashlib.sha256(f"{caller}\0{self.idempotency_key}".encode()).hexdigest()


def request_removal(user: Any, stack: Stack, *, via: str) -> Deployment:
    """Request the removal of this stack, for its owner or an operator. A second request returns the same removal."""

    def in_progress() -> Deployment | None:
        return stack.deployments.in_progress().filter(kind=Deployment.Kind.REMOVE).first()

    def create() -> Deployment:
        if earlier := in_progress():
            return earlier
        stack.refresh_from_db(from_queryset=Stack.objects.select_for_update(no_key=True))
        stack.require_idle()
        if via == Deployment.Via.SWEEPER and not stack.is_to_be_removed():  # changed since it was listed
            raise Refusal("CONFLICT", f"“{stack.name}” is in use again.")
        deployment = Deployment(
            stack=stack, template=stack.template, kind=Deployment.Kind.REMOVE, requested_by=user, via=via
        )
        deployment.spec = {"image": stack.template.image, "port": stack.template.port}  # all that a removal needs
        deployment.carry_over_app_name()
        return deployment.enqueue()

    return get_or_create_deployment(create, in_progress)


def request_due_removals() -> list[Deployment]:
    """Request the removal of expired stacks and of the leftovers of failed deployments and removals."""
    deployments = []
    for stack in Stack.objects.to_be_removed():
        with suppress(Refusal):
            deployments.append(request_removal(stack.owner, stack, via=Deployment.Via.SWEEPER))
    return deployments


def retry_deployment(deployment: Deployment, user: Any, *, via: str) -> Deployment:
    """Repeat a failed deployment with the same parameters, for its owner or an operator (changeable_by).

    Objects that exist are found and not created again. A second request returns the same retry. Raise Refusal CONFLICT
    when there is nothing to retry, or when the parameters can no longer be used. Raise Refusal NAME_TAKEN when another
    stack has taken the name of a removed stack.
    """
    if deployment.status == Deployment.Status.IN_PROGRESS:
        raise Refusal("CONFLICT", "This deployment is still in progress; there is nothing to retry.")
    if deployment.status == Deployment.Status.SUCCESS:
        raise Refusal("CONFLICT", "This deployment succeeded; there is nothing to retry.")

    def in_progress() -> Deployment | None:
        return deployment.retries.in_progress().first()

    def create() -> Deployment:
        if earlier := in_progress():
            return earlier
        if deployment.superseded:
            raise Refusal("CONFLICT", "A newer deployment of this stack exists. Open that one.")
        repeated = _repeat(deployment, user, via)
        repeated.retry_of = deployment
        repeated.save(update_fields=["retry_of"])
        return repeated

    return get_or_create_deployment(create, in_progress)


def _repeat(deployment: Deployment, user: Any, via: str) -> Deployment:
    stack = deployment.stack
    stack.refresh_from_db()
    if deployment.kind == Deployment.Kind.REMOVE:
        return request_removal(user, stack, via=via)
    request = DeploymentRequest(user, deployment.template, _same_parameters(deployment), via)
    if stack.state != Stack.State.GONE:
        repeated = request._redeploy(stack)
        if (deployment.error or {}).get("code") != "DOKPLOY_NOT_FOUND":  # otherwise start from the first phase
            repeated.resources |= {name: deployment.resources[name] for name in RESUMABLE & deployment.resources.keys()}
        repeated.save(update_fields=["resources"])
        left = stack.external_resources.filter(state=ExternalResource.State.LEFT)
        left.update(state=ExternalResource.State.MADE, why="")
        return repeated
    if Stack.objects.existing().filter(name=stack.name).exists():
        raise Refusal("NAME_TAKEN", f"“{stack.name}” has been taken since. Choose another name.", field="name")
    return replace(request, address=stack.requested_from, owner=stack.owner)._deploy(stack.name)


def _same_parameters(deployment: Deployment) -> dict[str, Any]:
    """Return the deployment's parameters. Raise Refusal CONFLICT when some are unreadable or no longer valid."""
    template = deployment.template
    if not deployment.stored_spec.has_readable_secrets() and (keys := template.secret_keys()):
        text = f"Some stored values can't be decrypted ({', '.join(sorted(keys))}). Deploy again and enter them."
        raise Refusal("CONFLICT", text)
    try:
        return template.clean_answers(deployment.stored_spec.environment())
    except Refusal as refusal:  # the template has changed
        text = f"The stored values no longer fit the template. {refusal.message} Deploy again with the form."
        raise Refusal("CONFLICT", text, field=refusal.field) from None


def get_or_create_deployment(create: Callable[[], Deployment], earlier: Callable[[], Deployment | None]) -> Deployment:
    """Create a deployment in a transaction.

    If a concurrent request was faster, return its deployment when `earlier` finds it; otherwise try once more.
    """
    for is_last_try in (False, True):
        try:
            with transaction.atomic():
                return create()
        except (IntegrityError, Refusal) as error:  # perhaps caused by the same caller's first request
            if deployment := earlier():
                return deployment
            if is_last_try or isinstance(error, Refusal):
                raise
    raise AssertionError("unreachable")
