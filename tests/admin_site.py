"""The test project with Django's admin, and with another admin site beside it."""

from django.contrib import admin
from django.urls import path

from django_sse.admin import EventGroupAdmin
from django_sse.models import EventGroup
from tests import urls

other_site = admin.AdminSite(name="other")
other_site.register(EventGroup, EventGroupAdmin)

urlpatterns = [
    path("admin/", admin.site.urls),
    path("other/", other_site.urls),
    *urls.urlpatterns,
]
