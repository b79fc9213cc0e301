"""HTTP: the responses to requests for streams, and the hand-off of a stream to the server.

Promise: a browser understands every response, also a refusal, and Django's request ends while the
stream goes on. The views, the decorators and `asgi` import it. It imports `streaming`.
"""
