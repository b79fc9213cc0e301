"""The test project for the readers: the programs that run in a browser are its pages."""

from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.static import serve

import django_sse
from tests import urls, views
from tests.live.readers.npm import NODE_MODULES
from tests.live.readers.readers import PROGRAMS


def position(request: HttpRequest, group: str) -> HttpResponse:
    """Return where a group stands, as a page has it that goes on from what it shows."""
    return HttpResponse(django_sse.position(group))


urlpatterns = [
    *urls.urlpatterns,
    path("position/<str:group>/", position),
    path("heartbeats/<str:group>/", views.Group.as_view(heartbeat=0.1)),
    path("programs/<path:path>", serve, {"document_root": PROGRAMS}),
    path("npm/<path:path>", serve, {"document_root": NODE_MODULES}),
]
