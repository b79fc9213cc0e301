"""Questions, and the answers that are sent word by word."""

ANSWERS = {
    "sse": (
        "What are Server-Sent Events?",
        "The response to an ordinary HTTP request, except that it does not end. The server keeps "
        "writing to it: a few lines of text for each event, then an empty line.\n\n"
        "The browser reads the events as they come. If the connection is lost, it reconnects, and "
        "says which event it saw last. Proxies, cookies and compression work as they always do, "
        "because it is only HTTP.",
    ),
    "websockets": (
        "Why not WebSockets?",
        "Use them if both sides talk all the time, as in a game.\n\n"
        "Most pages only listen. When they have something to say, a form will do: Django checks "
        "its token, its login and its fields. And a WebSocket knows nothing of reconnecting, or "
        "of events that were missed meanwhile. With Server-Sent Events, both are part of the "
        "standard.",
    ),
    "end": (
        "How does a stream end?",
        "This one ends when its view returns. The server then sends the event close, and the "
        "browser stops for good: readyState is CLOSED.\n\n"
        "Look at the dot above this text. Now!",
    ),
}
