from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import include, path
from django.views.generic import RedirectView

from deployments.forms import LoginForm

admin.site.site_header = admin.site.site_title = "Deploy Portal"
admin.site.login_form = LoginForm

urlpatterns = [
    path("", include("deployments.urls")),
    path("login", LoginView.as_view(authentication_form=LoginForm), name="login"),
    path("logout", LogoutView.as_view(), name="logout"),
    path(
        "admin/deployments/receipt/<path:rest>",
        RedirectView.as_view(url="/admin/deployments/externalresource/%(rest)s"),
    ),
    path(
        "admin/deployments/receipt/", RedirectView.as_view(pattern_name="admin:deployments_externalresource_changelist")
    ),
    path("admin/", admin.site.urls),
]
