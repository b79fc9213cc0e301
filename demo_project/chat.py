"""Chat rooms. Each room is a group, and each message goes to all browsers as HTML."""

from secrets import token_hex

from django import forms
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseForbidden
from django.shortcuts import redirect, render
from django.urls import path
from django.views.decorators.http import require_POST

from django_sse import publish_template
from django_sse.views import EventStreamView

ROOMS = ("lobby", "kitchen", "library")


class Room(EventStreamView):
    groups = ["chat-{room}"]
    history = 30


class Name(forms.Form):
    name = forms.CharField(max_length=30)


class Message(forms.Form):
    text = forms.CharField(max_length=500)


def page(request: HttpRequest, room: str = ROOMS[0]) -> HttpResponse:
    """Show a room to a visitor who has a name. Ask other visitors for one."""
    if room not in ROOMS:
        raise Http404
    chatter = request.session.get("chatter")
    form = Name(request.POST or None, initial=chatter, auto_id=False)
    if form.is_valid():
        request.session["chatter"] = {"mark": token_hex(4), **(chatter or {}), **form.cleaned_data}
        return redirect("room", room)
    context = {"room": room, "rooms": ROOMS, "chatter": chatter, "form": form}
    return render(request, "demo_project/chat.html", context)


@require_POST
def say(request: HttpRequest, room: str) -> HttpResponse:
    if room not in ROOMS:
        raise Http404
    if not (chatter := request.session.get("chatter")):
        return HttpResponseForbidden("Choose a name first.", content_type="text/plain")
    form = Message(request.POST)
    if not form.is_valid():
        return HttpResponse(form.errors.as_text(), "text/plain", status=400)
    # The template escapes what it is given, so nobody can put HTML into the room.
    message = {**chatter, **form.cleaned_data}
    publish_template(f"chat-{room}", "demo_project/chat/message.html", message)
    return HttpResponse(status=204)


urlpatterns = [
    path("chat/", page, name="chat"),
    path("chat/<slug:room>/", page, name="room"),
    path("chat/<slug:room>/say/", say, name="say"),
    path("chat/<slug:room>/events/", Room.as_view(), name="room-events"),
]
