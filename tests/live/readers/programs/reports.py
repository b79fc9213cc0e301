"""What the programs in Python print: a line of JSON for each thing that happens."""

import json


def event(type: str, data: str) -> None:
    """Report an event that was received."""
    _report(what="event", type=type, data=data)


def error(error: str) -> None:
    """Report an error after which the program goes on."""
    _report(what="error", error=error)


def _report(**report: str) -> None:
    print(json.dumps(report), flush=True)
