from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import include, path

from deployments.forms import LoginForm

admin.site.site_header = admin.site.site_title = "Deploy Portal"
admin.site.login_form = LoginForm

urlpatterns = [
    path("", include("deployments.urls")),
    path("login", LoginView.as_view(authentication_form=LoginForm), name="login"),
    path("logout", LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
]
