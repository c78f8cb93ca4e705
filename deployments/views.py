"""The pages. They ask a form, call one verb of the model, answer."""

from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
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
from .models import ApiToken, Deployment, Orphan, Refusal, Stack, request_removal, retry_deployment
from .realtime import deployment_page


@require_http_methods(["GET", "HEAD", "POST"])
def home(request: HttpRequest) -> HttpResponse:
    """The form, and below it the person's stacks."""
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path())
    if request.method == "POST":
        form = DeployForm(request.user, request.POST)
        deployment = form.deploy(request.address) if form.is_valid() else None  # type: ignore[attr-defined]
        if deployment is not None:
            return redirect("deployment", deployment.pk)
    else:
        form = DeployForm(request.user, initial={"name": request.GET.get("name", "")[:30]})
    name = str(form["name"].value() or "")
    context = {
        "form": form,
        "cards": form.cards(),
        **_address(),
        "check": name_availability.check_local(request.user, name) if name else None,
        "usual": _usual(),
        "phases": [phase.title for phase in PHASES],
        "stacks": deployment_page.stacks(deployment_page.newest_deployments(_person(request).pk)),
        "stacks_socket": "/ws/stacks",
    }
    return render(request, "home.html", context, status=400 if form.errors else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def redeploy(request: HttpRequest, id: str) -> HttpResponse:
    """The form again, for a stack that is there."""
    stack = get_object_or_404(Stack.objects.visible_to(request.user), pk=id)
    if stack.state == Stack.State.GONE:
        return _is_gone(request, stack)
    if request.method == "POST":
        form = RedeployForm(request.user, stack, request.POST)
        deployment = form.deploy(request.address) if form.is_valid() else None  # type: ignore[attr-defined]
        if deployment is not None:
            return redirect("deployment", deployment.pk)
    else:
        form = RedeployForm(request.user, stack)
    context = {"form": form, "cards": form.cards(), "stack": stack, "usual": _usual()}
    return render(request, "redeploy.html", context, status=400 if form.errors else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def remove(request: HttpRequest, id: str) -> HttpResponse:
    """Asks for the stack's name, then takes it away."""
    stack = get_object_or_404(Stack.objects.visible_to(request.user), pk=id)
    if stack.state == Stack.State.GONE:
        return _is_gone(request, stack)
    form = RemoveForm(stack, request.POST if request.method == "POST" else None)
    if form.is_valid():
        try:
            return _go_to(request, request_removal(_person(request), stack, via=Deployment.Via.FORM))
        except Refusal as refusal:
            form.add_error(None, refusal.message)
    receipts = stack.external_resources.existing().exclude(resource_type="deploy").order_by("-pk")
    context = {"form": form, "stack": stack, "objects": [receipt.resource_type for receipt in receipts]}
    return render(request, "remove.html", context, status=400 if form.errors else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def cancel(request: HttpRequest, id: str) -> HttpResponse:
    """Asks for a run's end. Without JavaScript it asks back first."""
    deployment = _changeable(request, id)
    if request.method != "POST":
        text = "What was made so far is undone, and the name is free again unless the stack ran before."
        context = {"run": deployment, "title": f"Cancel {deployment.stack.name}?", "text": text, "button": "Cancel it"}
        return render(request, "ask.html", context)
    try:
        deployment.cancel(request.user)
    except Refusal as refusal:
        messages.error(request, refusal.message)
    return _go_to(request, deployment)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def retry(request: HttpRequest, id: str) -> HttpResponse:
    """A new run with the same answers. Without JavaScript it asks back first."""
    deployment = _changeable(request, id)
    if request.method != "POST":
        text = "A new run with the same answers. What is there already is found, and not made again."
        context = {
            "run": deployment,
            "title": f"Try {deployment.stack.name} again?",
            "text": text,
            "button": "Try again",
        }
        return render(request, "ask.html", context)
    try:
        return _go_to(request, retry_deployment(deployment, _person(request), via=Deployment.Via.FORM))
    except Refusal as refusal:
        messages.error(request, refusal.message)
        return _go_to(request, deployment)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def orphan(request: HttpRequest, id: int) -> HttpResponse:
    """An operator's: takes away what is at Dokploy with our mark and in no book."""
    if not request.user.is_staff:
        raise Http404
    found = Orphan.objects.filter(pk=id).first()
    if found is None:
        messages.info(
            request, "This is no longer an orphan: its removal was already requested, or it no longer exists."
        )
        return redirect("admin:deployments_orphan_changelist")
    if request.method == "POST":
        try:
            return _go_to(request, found.remove(request.user))
        except Refusal as refusal:
            messages.error(request, refusal.message)
    text = (
        f"It carries this portal's mark ({found.mark}), but no record mentions it. "
        "Everything with this mark will be deleted."
    )
    context = {"title": f"Remove the {found.resource_type} {found.name}?", "text": text, "button": "Remove it"}
    return render(request, "ask.html", context)


def _changeable(request: HttpRequest, id: str) -> Deployment:
    deployments = Deployment.objects.changeable_by(request.user).select_related("stack__owner", "template")
    return get_object_or_404(deployments, pk=id)


def _go_to(request: HttpRequest, deployment: Deployment) -> HttpResponse:
    return _go(request, reverse("deployment", args=[deployment.pk]))


def _is_gone(request: HttpRequest, stack: Stack) -> HttpResponse:
    messages.info(request, f"“{stack.name}” has been removed.")
    return _go(request, reverse("home"))


def _go(request: HttpRequest, address: str) -> HttpResponse:
    return HttpResponseClientRedirect(address) if request.htmx else redirect(address)  # type: ignore[attr-defined]


def _person(request: HttpRequest) -> Any:
    """Who is signed in, in the demo also its visitor. Only where somebody is."""
    return request.user


def _address() -> dict[str, str]:
    prefix, _, suffix = settings.STACK_URL.partition("{name}")
    return {"address_prefix": prefix, "address_suffix": suffix}


def _usual() -> str | None:
    usual = deployment_page.usual()
    return f"{usual}, from the last runs" if usual else None


@require_GET
@login_required
def check_name(request: HttpRequest) -> HttpResponse:
    """What the form says while somebody types."""
    name = request.GET.get("name", "").strip()[:64]
    found = async_to_sync(name_availability.check)(request.user, name) if name else None
    return render(request, "_check.html", {"check": found, **_address()})


@require_GET
@login_required
def stacks(request: HttpRequest) -> HttpResponse:
    return render(
        request,
        "_stacks.html",
        {"stacks": deployment_page.stacks(deployment_page.newest_deployments(_person(request).pk))},
    )


@require_GET
def deployment(request: HttpRequest, id: str) -> HttpResponse:
    """The live page: whole at once, then kept up to date by socket or by polling."""
    context: dict[str, Any] = {
        "live": _live(request, id),
        "socket": f"/ws/deployments/{id}",
        "fallback": reverse("deployment-live", args=[id]),
    }
    return render(request, "deployment.html", context)


@require_GET
def deployment_live(request: HttpRequest, id: str) -> HttpResponse:
    """The same partial alone, for who polls."""
    return render(request, "_live.html", {"live": _live(request, id)})


def _live(request: HttpRequest, id: str) -> dict[str, Any]:
    deployments = Deployment.objects.select_related("stack__owner", "template", "requested_by")
    deployment = get_object_or_404(deployments.visible_to(request.user), pk=id)
    return deployment_page.live(
        deployment, list(deployment.events.filter(seq__lte=deployment.version)), deployment.audience(request.user)
    )


@require_GET
def help_page(request: HttpRequest, code: str | None = None) -> HttpResponse:
    if code is not None and code not in failures.BY_CODE:
        raise Http404
    return render(request, "help.html", {"entry": failures.BY_CODE.get(code or ""), "entries": failures.FAILURES})


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def tokens(request: HttpRequest) -> HttpResponse:
    """A person's API tokens: made (shown this once), listed, revoked."""
    fresh = None
    if request.method == "POST":
        if revoke := request.POST.get("revoke"):
            ApiToken.objects.filter(
                owner=_person(request), pk=revoke if revoke.isdecimal() and len(revoke) < 19 else 0
            ).delete()
            return redirect("tokens")
        _, fresh = ApiToken.issue(_person(request), request.POST.get("label", ""))
    listed = [
        {
            "id": token.pk,
            "label": token.label,
            "prefix": token.prefix,
            "created": token.created_at,
            "last_used": token.last_used_at,
        }
        for token in ApiToken.objects.filter(owner=_person(request))
    ]
    base_url = f"{request.scheme}://{request.get_host()}"
    return render(request, "tokens.html", {"tokens": listed, "fresh": fresh, "base_url": base_url})
