"""Servers: what ASGI does not say of connections, on daphne, uvicorn, hypercorn and granian.

Promise: a client that does not read, has vanished or has to leave delays nothing else.
`http` and `streaming` import this package. It knows nothing of events.
"""
