"""Concurrency: tasks, threads and locks that outlive a request and survive a fork.

Promise: no work that was started is lost silently, and none keeps a request's thread or connection.
Every package may import this one. It knows nothing of streams.
"""
