"""Why there is no stream to listen to."""


class NotStreamedError(Exception):
    """There is nothing to listen to. The user is shown the error."""
