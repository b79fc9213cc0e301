"""Concurrency: tasks, threads and locks that outlive a request and survive a fork.

Promise: nothing that was begun is lost in silence, and nothing keeps a request's thread or
connection. Everything may import it; it knows nothing of streams.
"""
