"""HTTP: what a request for a stream is answered, and how its stream is handed off to the server.

Promise: a browser understands every answer, also a refusal, and Django's request ends though the
stream goes on. The views, the decorators and `asgi` import it; it knows `streaming`.
"""
