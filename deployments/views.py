"""The pages. Each view reads its form, calls one function of the models, and responds with a page or a redirect."""

from collections.abc import Callable
from functools import partial
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods
from django_htmx.http import HttpResponseClientRedirect

from . import name_availability
from .engine import failures
from .engine.recipe import PHASES
from .forms import DeployForm, RedeployForm, RemoveForm
from .identity import PageRequest, UserPageRequest
from .models import ApiToken, Deployment, Orphan, Refusal, Stack, request_removal, retry_deployment
from .realtime.deployment_page import page_context
from .realtime.durations import usual_duration
from .realtime.stack_list import newest_deployments, stack_rows

require_page_method = require_http_methods(["GET", "HEAD", "POST"])


# -- stacks ------------------------------------------------------------------------------------------------------------


@require_page_method
def home(request: PageRequest) -> HttpResponse:
    """Show the deploy form and the user's stacks; POST deploys."""
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path())
    if request.method == "POST":
        form = DeployForm(request.user, request.POST)
        deployment = form.deploy(request.address) if form.is_valid() else None
        if deployment is not None:
            return redirect("deployment", deployment.pk)
    else:
        form = DeployForm(request.user, initial={"name": request.GET.get("name", "")[:30]})
    name = str(form["name"].value() or "")
    context = {
        "form": form,
        "cards": form.cards(),
        **_address_parts(),
        "availability": name_availability.check_local(request.user, name, request.address) if name else None,
        "usual": _usual_duration(),
        "phases": [phase.title for phase in PHASES],
        "stacks": _stack_rows(request.user),
        "stacks_socket": "/ws/stacks",
    }
    return render(request, "home.html", context, status=400 if form.errors else 200)


@require_GET
@login_required
def check_name(request: UserPageRequest) -> HttpResponse:
    """Return the partial below the name field, which htmx requests while the user types."""
    name = request.GET.get("name", "").strip()[:64]
    availability = async_to_sync(name_availability.check)(request.user, name, request.address) if name else None
    return render(request, "_name_availability.html", {"availability": availability, **_address_parts()})


@require_GET
@login_required
def stack_list(request: UserPageRequest) -> HttpResponse:
    """Return the partial with the user's stacks."""
    return render(request, "_stacks.html", {"stacks": _stack_rows(request.user)})


@require_page_method
@login_required
def redeploy(request: UserPageRequest, id: str) -> HttpResponse:
    """Show the deploy form with the values of an existing stack; POST redeploys it."""
    stack = get_object_or_404(Stack.objects.visible_to(request.user), pk=id)
    if stack.state == Stack.State.GONE:
        return _redirect_removed_stack(request, stack)
    if request.method == "POST":
        form = RedeployForm(request.user, stack, request.POST)
        deployment = form.deploy(request.address) if form.is_valid() else None
        if deployment is not None:
            return redirect("deployment", deployment.pk)
    else:
        form = RedeployForm(request.user, stack)
    context = {"form": form, "cards": form.cards(), "stack": stack, "usual": _usual_duration()}
    return render(request, "redeploy.html", context, status=400 if form.errors else 200)


@require_page_method
@login_required
def remove(request: UserPageRequest, id: str) -> HttpResponse:
    """Ask for the stack's name; POST removes the stack."""
    stack = get_object_or_404(Stack.objects.visible_to(request.user), pk=id)
    if stack.state == Stack.State.GONE:
        return _redirect_removed_stack(request, stack)
    form = RemoveForm(stack, request.POST if request.method == "POST" else None)
    if form.is_valid():
        try:
            return _redirect_to_deployment(request, request_removal(request.user, stack, via=Deployment.Via.FORM))
        except Refusal as refusal:
            form.add_error(None, refusal.message)
    resources = stack.external_resources.existing().exclude(resource_type="deploy").order_by("-pk")
    context = {"form": form, "stack": stack, "objects": [resource.resource_type for resource in resources]}
    return render(request, "remove.html", context, status=400 if form.errors else 200)


def _redirect_removed_stack(request: UserPageRequest, stack: Stack) -> HttpResponse:
    messages.info(request, f"“{stack.name}” has been removed.")
    return _redirect(request, reverse("home"))


def _stack_rows(user: User) -> list[dict[str, Any]]:
    return stack_rows(newest_deployments(user.pk))


def _address_parts() -> dict[str, str]:
    prefix, _, suffix = settings.STACK_URL.partition("{name}")
    return {"address_prefix": prefix, "address_suffix": suffix}


def _usual_duration() -> str | None:
    usual = usual_duration()
    return f"{usual}, based on recent deployments" if usual else None


# -- deployments -------------------------------------------------------------------------------------------------------


@require_GET
def deployment(request: PageRequest, id: str) -> HttpResponse:
    """Show a deployment. The page is complete, and then updated over a WebSocket or by polling."""
    context: dict[str, Any] = {
        "page": _deployment_context(request, id),
        "socket": f"/ws/deployments/{id}",
        "fallback": reverse("deployment-live", args=[id]),
    }
    return render(request, "deployment.html", context)


@require_GET
def deployment_partial(request: PageRequest, id: str) -> HttpResponse:
    """Return the changing part of the page, for a browser that polls."""
    return render(request, "_deployment.html", {"page": _deployment_context(request, id)})


def _deployment_context(request: PageRequest, id: str) -> dict[str, Any]:
    deployments = Deployment.objects.select_related("stack__owner", "template", "requested_by")
    deployment = get_object_or_404(deployments.visible_to(request.user), pk=id)
    events = list(deployment.events.filter(seq__lte=deployment.version))
    return page_context(deployment, events, deployment.audience(request.user))


@require_page_method
@login_required
def cancel(request: UserPageRequest, id: str) -> HttpResponse:
    """Cancel a deployment."""
    deployment = _get_changeable_deployment(request, id)
    text = "Everything created so far will be removed, and the name will be available again."
    if deployment.kind == Deployment.Kind.REDEPLOY:
        text = "The previous version will be restored."

    def act() -> Deployment:
        deployment.cancel(request.user)
        return deployment

    title = f"Cancel the deployment of {deployment.stack.name}?"
    return _confirm(request, act, title, text, "Cancel deployment", deployment)


@require_page_method
@login_required
def retry(request: UserPageRequest, id: str) -> HttpResponse:
    """Retry a failed deployment."""
    deployment = _get_changeable_deployment(request, id)
    what = "deployment"
    text = "This starts a new deployment with the same values. Objects that already exist are reused."
    if deployment.kind == Deployment.Kind.REMOVE:
        what, text = "removal", "This tries to remove everything that is left."
    act = partial(retry_deployment, deployment, request.user, via=Deployment.Via.FORM)
    return _confirm(request, act, f"Try the {what} of {deployment.stack.name} again?", text, "Try again", deployment)


@require_page_method
@login_required
def remove_orphan(request: UserPageRequest, id: int) -> HttpResponse:
    """Remove an orphan, for operators."""
    if not request.user.is_staff:
        raise Http404
    orphan = Orphan.objects.filter(pk=id).first()
    if orphan is None:
        text = "This is no longer an orphan: its removal was already requested, or it no longer exists."
        messages.info(request, text)
        return redirect("admin:deployments_orphan_changelist")
    text = (
        f"It carries this portal's mark ({orphan.mark}), but the portal has no record of it. "
        "Everything with this mark will be deleted."
    )
    title = f"Remove the {orphan.resource_type} {orphan.name}?"
    return _confirm(request, partial(orphan.remove, request.user), title, text, "Remove")


def _confirm(
    request: UserPageRequest,
    act: Callable[[], Deployment],
    title: str,
    text: str,
    button: str,
    deployment: Deployment | None = None,
) -> HttpResponse:
    """Act on POST, and redirect to the deployment. GET asks for confirmation, for browsers without JavaScript."""
    if request.method == "POST":
        try:
            return _redirect_to_deployment(request, act())
        except Refusal as refusal:
            messages.error(request, refusal.message)
            if deployment is not None:
                return _redirect_to_deployment(request, deployment)
    context = {"deployment": deployment, "title": title, "text": text, "button": button}
    return render(request, "confirm.html", context)


def _get_changeable_deployment(request: UserPageRequest, id: str) -> Deployment:
    deployments = Deployment.objects.changeable_by(request.user).select_related("stack__owner", "template")
    return get_object_or_404(deployments, pk=id)


def _redirect_to_deployment(request: PageRequest, deployment: Deployment) -> HttpResponse:
    return _redirect(request, reverse("deployment", args=[deployment.pk]))


def _redirect(request: PageRequest, url: str) -> HttpResponse:
    return HttpResponseClientRedirect(url) if request.htmx else redirect(url)


# -- help and tokens ---------------------------------------------------------------------------------------------------


@require_GET
def help_page(request: HttpRequest, code: str | None = None) -> HttpResponse:
    """Show the list of failures, or the one with this code."""
    if code is not None and code not in failures.BY_CODE:
        raise Http404
    return render(request, "help.html", {"entry": failures.BY_CODE.get(code or ""), "entries": failures.FAILURES})


@require_page_method
@login_required
def tokens(request: UserPageRequest) -> HttpResponse:
    """List the user's API tokens; POST revokes one, or creates one and shows it this once."""
    new_token = None
    if request.method == "POST":
        if revoke := request.POST.get("revoke"):
            token_id = int(revoke) if revoke.isdecimal() and len(revoke) < 19 else 0
            ApiToken.objects.filter(owner=request.user, pk=token_id).delete()
            return redirect("tokens")
        _, new_token = ApiToken.issue(request.user, request.POST.get("label", ""))
    base_url = f"{request.scheme}://{request.get_host()}"
    own = ApiToken.objects.filter(owner=request.user)
    return render(request, "tokens.html", {"tokens": own, "new_token": new_token, "base_url": base_url})
