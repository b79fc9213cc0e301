from django.urls import path

from demo_project.recipes import datastar, htmx, turbo, tutorials, views

app_name = "recipes"

urlpatterns = [
    path("", views.index, name="index"),
    path("<slug:name>/", views.page, name="page"),
    path("digits/stream/", tutorials.digits, name="digits"),
    path("server-time/stream/", tutorials.server_time, name="server-time"),
    path("close-message/stream/", tutorials.download, name="download"),
    path("close-message/maintenance/", tutorials.maintenance, name="maintenance"),
    path("join-leave/stream/", tutorials.Room.as_view(), name="room"),
    path("join-leave/join/", tutorials.join, name="join"),
    path("join-leave/leave/", tutorials.leave, name="leave"),
    path("lines/stream/", tutorials.lines, name="lines"),
    path("cross-origin/enter/", tutorials.enter, name="enter"),
    path("cross-origin/stream/", tutorials.who, name="who"),
    path("last-event-id/stream/", tutorials.numbers, name="numbers"),
    path("missed-events/stream/", tutorials.Ticker.as_view(), name="ticker"),
    path("missed-events/tick/", tutorials.tick, name="tick"),
    path("no-content/stream/", tutorials.Sale.as_view(), name="sale"),
    path("no-content/sell-out/", tutorials.sell_out, name="sell-out"),
    path("no-content/restock/", tutorials.restock, name="restock"),
    path("another-answer/not-there/", tutorials.not_there, name="not-there"),
    path("another-answer/no-stream/", tutorials.no_stream, name="no-stream"),
    path("htmx/stream/", htmx.Stories.as_view(), name="htmx"),
    path("htmx/tell/", htmx.tell, name="htmx-tell"),
    path("htmx/end/", htmx.end, name="htmx-end"),
    path("htmx/begin/", htmx.begin, name="htmx-begin"),
    path("turbo/stream/", turbo.Stories.as_view(), name="turbo"),
    path("turbo/tell/", turbo.tell, name="turbo-tell"),
    path("turbo/end/", turbo.end, name="turbo-end"),
    path("turbo/begin/", turbo.begin, name="turbo-begin"),
    path("datastar/stream/", datastar.Stories.as_view(), name="datastar"),
    path("datastar/tell/", datastar.tell, name="datastar-tell"),
    path("datastar/end/", datastar.end, name="datastar-end"),
    path("datastar/begin/", datastar.begin, name="datastar-begin"),
]
