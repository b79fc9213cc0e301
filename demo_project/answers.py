"""PermissionRechecks, and what is answered word by word."""

ANSWERS = {
    "sse": (
        "What are Server-Sent Events?",
        "An answer to an ordinary HTTP request that does not end. The server goes on writing to "
        "it: a few lines of text for each event, and an empty line behind them.\n\n"
        "The browser reads them as they come. If the connection is lost, it asks again, and says "
        "which event it has seen last. Proxies, cookies and compression work as they always do, "
        "for it is only HTTP.",
    ),
    "websockets": (
        "Why not WebSockets?",
        "Use them where both sides talk all the time, as in a game.\n\n"
        "Most pages only listen. When they have something to say, a form will do: Django checks "
        "its token, its login and its fields. And a WebSocket knows nothing of reconnecting, or "
        "of what was missed meanwhile; with Server-Sent Events that is part of the standard.",
    ),
    "end": (
        "How does a stream end?",
        "This one ends when its view returns. The server then sends the event close, and the "
        "browser stops for good: readyState is CLOSED.\n\n"
        "Look at the dot above this text. Now!",
    ),
}
