"""What operators see. Runs, events and receipts are read-only: only the runner writes them."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from .models import ApiToken, Deployment, Event, ExternalResource, Orphan, Stack, Template


class ReadOnly(admin.ModelAdmin):
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ReadOnlyInline(admin.TabularInline):
    extra = 0
    can_delete = False
    show_change_link = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class EventInline(ReadOnlyInline):
    model = Event
    columns: Any = ["seq", "at", "type", "phase", "status", "progress", "message", "data"]
    fields = readonly_fields = columns


class ViewExternalResource:
    """Check the permission under its stored codename."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("deployments.view_receipt")


class ExternalResourceInline(ViewExternalResource, ReadOnlyInline):
    model = ExternalResource
    columns: Any = ["resource_type", "state", "external_id", "mark", "why", "updated_at"]
    fields = readonly_fields = columns


class DeploymentInline(ReadOnlyInline):
    model = Deployment
    columns: Any = ["id", "kind", "status", "phase", "message", "requested_by", "via", "created_at"]
    fields = readonly_fields = columns
    show_change_link = True
    fk_name = "stack"


@admin.register(Template)
class TemplateAdmin(admin.ModelAdmin):
    list_display = ["name", "slug", "image", "port", "public", "active", "from_settings"]
    readonly_fields = ["from_settings"]
    prepopulated_fields = {"slug": ["name"]}

    class Form(forms.ModelForm):
        registry_password = forms.CharField(
            required=False,
            widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
            help_text="Write-only: stays as it is when left empty.",
        )

        class Meta:
            model = Template
            exclude = ["registry_password_encrypted"]  # noqa: DJ006 - every other field is an operator's

    form = Form

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        if obj is not None and obj.from_settings:  # these follow STACK_* and would be overwritten at the next start
            return [*self.readonly_fields, "image", "port", "health_path", "health_interval", "health_timeout"]
        return list(self.readonly_fields)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if password := form.cleaned_data.get("registry_password"):
            obj.registry_password = password
        super().save_model(request, obj, form, change)


@admin.register(Stack)
class StackAdmin(ReadOnly):
    list_display = ["name", "state", "owner", "template", "url", "created_at", "expires_at", "what_to_do"]
    readonly_fields = ["what_to_do"]
    list_filter = ["state", "template"]
    search_fields = ["name", "id", "owner__username"]
    inlines = [DeploymentInline, ExternalResourceInline]
    formfield_overrides = {models.URLField: {"assume_scheme": "https"}}

    @admin.display(description="what to do")
    def what_to_do(self, stack: Stack) -> str:
        """The pages' own ways: a redeploy filled in with what there is, a removal that asks for the name."""
        if stack.state == Stack.State.GONE:
            return "–"
        again, remove = (reverse(name, args=[stack.pk]) for name in ("redeploy", "remove"))
        return format_html('<a href="{}">deploy again</a> · <a href="{}">remove</a>', again, remove)


@admin.register(Deployment)
class DeploymentAdmin(ReadOnly):
    list_display = ["stack", "kind", "status", "phase", "requested_by", "via", "created_at", "live_page", "what_to_do"]
    list_filter = ["status", "kind", "phase", "via"]
    search_fields = ["id", "stack__name", "requested_by__username"]
    date_hierarchy = "created_at"
    exclude = ["spec_encrypted"]
    inlines = [EventInline]

    @admin.display(description="live page")
    def live_page(self, deployment: Deployment) -> str:
        return format_html('<a href="{}">open</a>', reverse("deployment", args=[deployment.pk]))

    @admin.display(description="what to do")
    def what_to_do(self, deployment: Deployment) -> str:
        verb = "retry" if deployment.done else "cancel"
        if deployment.status == Deployment.Status.SUCCESS or (
            not deployment.done and deployment.kind == Deployment.Kind.REMOVE
        ):
            return "–"
        return format_html('<a href="{}">{}</a>', reverse(verb, args=[deployment.pk]), verb)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("stack", "requested_by")


@admin.register(ExternalResource)
class ExternalResourceAdmin(ViewExternalResource, ReadOnly):
    list_display = ["stack", "resource_type", "state", "external_id", "why", "updated_at"]
    list_filter = ["state", "resource_type"]
    search_fields = ["stack__name", "external_id", "mark"]


@admin.register(Orphan)
class OrphanAdmin(ReadOnly):
    """What is at Dokploy with our mark and in no book."""

    list_display = ["resource_type", "name", "external_id", "mark", "seen_at", "what_to_do"]
    search_fields = ["name", "external_id", "mark"]

    @admin.display(description="what to do")
    def what_to_do(self, orphan: Orphan) -> str:
        return format_html('<a href="{}">remove at Dokploy</a>', reverse("orphan", args=[orphan.pk]))


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnly):
    list_display = ["label", "prefix", "owner", "created_at", "last_used_at"]
    exclude = ["digest"]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """A filter by the start of a hash would read it, letter by letter."""
        return not lookup.startswith("digest") and super().lookup_allowed(lookup, value, request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.is_superuser  # an operator may revoke
