"""The admin, for operators. Of the portal's models, only templates can be edited; a superuser can delete tokens."""

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from .models import ApiToken, Deployment, Event, ExternalResource, Orphan, Stack, Template

if TYPE_CHECKING:  # these classes are generic in django-stubs, but not in Django
    ModelAdmin = admin.ModelAdmin[Any]
    TabularInline = admin.TabularInline[Any, Any]
    TemplateModelForm = forms.ModelForm[Template]
else:
    ModelAdmin, TabularInline, TemplateModelForm = admin.ModelAdmin, admin.TabularInline, forms.ModelForm


class ReadOnlyAdmin(ModelAdmin):
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ReadOnlyInline(TabularInline):
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


class ViewExternalResourceMixin:
    """Check the permission to view by its stored codename, which is older than the model's name."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("deployments.view_receipt")


class ExternalResourceInline(ViewExternalResourceMixin, ReadOnlyInline):
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
class TemplateAdmin(ModelAdmin):
    list_display = ["name", "slug", "image", "port", "public", "active", "from_settings"]
    readonly_fields = ["from_settings"]
    prepopulated_fields = {"slug": ["name"]}

    class Form(TemplateModelForm):
        registry_password = forms.CharField(
            required=False,
            widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
            help_text="Write-only. Leave empty to keep the stored password.",
        )

        class Meta:
            model = Template
            exclude = ["registry_password_encrypted"]  # operators may edit every other field

    form = Form

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        if obj is not None and obj.from_settings:  # these fields follow STACK_* and are overwritten at each start
            return [*self.readonly_fields, "image", "port", "health_path", "health_interval", "health_timeout"]
        return list(self.readonly_fields)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if password := form.cleaned_data.get("registry_password"):
            obj.registry_password = password
        super().save_model(request, obj, form, change)


@admin.register(Stack)
class StackAdmin(ReadOnlyAdmin):
    list_display = ["name", "state", "owner", "template", "url", "created_at", "expires_at", "action_links"]
    readonly_fields = ["action_links"]
    list_filter = ["state", "template"]
    search_fields = ["name", "id", "owner__username"]
    inlines = [DeploymentInline, ExternalResourceInline]
    formfield_overrides = {models.URLField: {"assume_scheme": "https"}}

    @admin.display(description="actions")
    def action_links(self, stack: Stack) -> str:
        """Link to the redeploy form and to the page that confirms the removal."""
        if stack.state == Stack.State.GONE:
            return "–"
        redeploy, remove = (reverse(name, args=[stack.pk]) for name in ("redeploy", "remove"))
        return format_html('<a href="{}">deploy again</a> · <a href="{}">remove</a>', redeploy, remove)


@admin.register(Deployment)
class DeploymentAdmin(ReadOnlyAdmin):
    list_display = [
        "stack",
        "kind",
        "status",
        "phase",
        "requested_by",
        "via",
        "created_at",
        "page_link",
        "action_links",
    ]
    list_filter = ["status", "kind", "phase", "via"]
    search_fields = ["id", "stack__name", "requested_by__username"]
    date_hierarchy = "created_at"
    exclude = ["spec_encrypted"]
    inlines = [EventInline]

    @admin.display(description="page")
    def page_link(self, deployment: Deployment) -> str:
        return format_html('<a href="{}">open</a>', reverse("deployment", args=[deployment.pk]))

    @admin.display(description="actions")
    def action_links(self, deployment: Deployment) -> str:
        if deployment.status == Deployment.Status.SUCCESS:
            return "–"
        if not deployment.done and deployment.kind == Deployment.Kind.REMOVE:  # a removal can't be cancelled
            return "–"
        action = "retry" if deployment.done else "cancel"
        return format_html('<a href="{}">{}</a>', reverse(action, args=[deployment.pk]), action)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("stack", "requested_by")


@admin.register(ExternalResource)
class ExternalResourceAdmin(ViewExternalResourceMixin, ReadOnlyAdmin):
    list_display = ["stack", "resource_type", "state", "external_id", "why", "updated_at"]
    list_filter = ["state", "resource_type"]
    search_fields = ["stack__name", "external_id", "mark"]


@admin.register(Orphan)
class OrphanAdmin(ReadOnlyAdmin):
    """The objects at Dokploy that carry the portal's mark, but have no record in the portal."""

    list_display = ["resource_type", "name", "external_id", "mark", "seen_at", "action_links"]
    search_fields = ["name", "external_id", "mark"]

    @admin.display(description="actions")
    def action_links(self, orphan: Orphan) -> str:
        return format_html('<a href="{}">remove from Dokploy</a>', reverse("orphan", args=[orphan.pk]))


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnlyAdmin):
    list_display = ["label", "prefix", "owner", "created_at", "last_used_at"]
    exclude = ["digest"]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Refuse filters by digest: filtering by its first characters would reveal it step by step."""
        return not lookup.startswith("digest") and super().lookup_allowed(lookup, value, request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.is_superuser  # deleting a token revokes it
