"""The URLs of pages and API, and of the pages' WebSockets."""

from django.urls import path
from django.urls.converters import StringConverter, register_converter

from . import api, consumers, views
from .models.stack import STACK_ID


class DeploymentId(StringConverter):
    regex = "dep_[0-9a-f]{32}"


class StackId(StringConverter):
    regex = STACK_ID.pattern


register_converter(DeploymentId, "deployment")
register_converter(StackId, "stack")

urlpatterns = [
    path("", views.home, name="home"),
    path("check", views.check_name, name="check"),
    path("stacks", views.stack_list, name="stacks"),
    path("stacks/<stack:id>/deploy", views.redeploy, name="redeploy"),
    path("stacks/<stack:id>/remove", views.remove, name="remove"),
    path("deployments/<deployment:id>", views.deployment, name="deployment"),
    path("deployments/<deployment:id>/live", views.deployment_partial, name="deployment-live"),
    path("deployments/<deployment:id>/cancel", views.cancel, name="cancel"),
    path("deployments/<deployment:id>/retry", views.retry, name="retry"),
    path("orphans/<int:id>/remove", views.remove_orphan, name="orphan"),
    path("help/", views.help_page, name="help"),
    path("help/<str:code>", views.help_page, name="help"),
    path("tokens", views.tokens, name="tokens"),
    path("api/deploy", api.deploy, name="api-deploy"),
    path("api/status/<str:id>", api.status, name="api-status"),
    path("api/deployments/<str:id>", api.state, name="api-deployment"),
    path("api/deployments/<str:id>/cancel", api.cancel, name="api-cancel"),
    path("api/deployments/<str:id>/retry", api.retry, name="api-retry"),
    path("api/deployments/<str:id>/events", api.events, name="api-events"),
    path("api/stacks/<str:name>", api.remove, name="api-stack"),
    path("api/check/<str:name>", api.check_name, name="api-check"),
    path("api/<path:rest>", api.unknown_path),
]

websocket_urlpatterns = [
    path("ws/deployments/<deployment:id>", consumers.DeploymentConsumer.as_asgi()),
    path("ws/stacks", consumers.StackListConsumer.as_asgi()),
]
