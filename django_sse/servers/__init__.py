"""Servers: what ASGI does not say of a connection, on daphne, uvicorn, hypercorn and granian.

Promise: a client that does not read, has vanished or has to go holds nothing up.
`http` and `streaming` import it; it knows no event.
"""
