"""The views that publish by HTTP, and streams of what they publish."""

from django.urls import path

from django_sse.contrib.http_publish import MercurePublishView, PublishView
from django_sse.groups.names import group_name
from django_sse.views import EventStreamView
from tests.views import Group

SECRET = "a secret of the publishers, which has 32 bytes"
BOOK = "https://example.com/books/1"


class Small(PublishView):
    max_body_bytes = 200
    max_events = 3


class Book(EventStreamView):
    groups = [group_name(BOOK)]


urlpatterns = [
    path("publish/", PublishView.as_view()),
    path("small/", Small.as_view()),
    path("mercure/", MercurePublishView.as_view(jwt_keys=[SECRET])),
    path("book/", Book.as_view()),
    path("events/<str:group>/", Group.as_view()),
    path("history/<str:group>/", Group.as_view(history=5000)),
]
