"""The URLs of the test project with a stream behind Django REST framework."""

from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from rest_framework.authentication import SessionAuthentication
from rest_framework.permissions import IsAuthenticated
from rest_framework_simplejwt.authentication import JWTAuthentication
from rest_framework_simplejwt.tokens import AccessToken

from django_sse.contrib.rest_framework import EventStreamAPIView


class Endpoint(EventStreamAPIView):
    groups = ["{group}"]
    authentication_classes = [JWTAuthentication, SessionAuthentication]
    permission_classes = [IsAuthenticated]


def ticket(request: HttpRequest, user: str) -> HttpResponse:
    """Return a new token of a user."""
    found, _ = User.objects.get_or_create(username=user)
    return HttpResponse(str(AccessToken.for_user(found)))


urlpatterns = [
    path("api/<str:group>/", Endpoint.as_view()),
    path("ticket/<str:user>/", ticket),
    path("", include("tests.urls")),
]
