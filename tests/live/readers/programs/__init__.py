"""Programs that follow a stream, each with a client of its own, as that client's README shows.

With ``own-lines`` they do what the documentation of django_sse tells besides.
"""
