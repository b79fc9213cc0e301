import json
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from django.core.management.base import CommandError

from django_sse.groups.entries import GroupState
from django_sse.groups.names import validate_group
from django_sse.groups.namespaces import current_namespace, full_name, plain_name
from django_sse.groups.position import format_position
from django_sse.management.group_command import GroupCommand, said_of
from django_sse.models import EventGroup
from django_sse.monitoring import ProcessReport, processes
from django_sse.stores import get_store
from django_sse.stores.database import DatabaseStore
from django_sse.stores.database.listing import of_tenant

_COLUMNS: Final = (
    *("process", "streams", "groups", "users", "slow", "waiting", "opened", "closed", "refused"),
    *("published", "delivered", "resets", "loop lag", "store lag"),
)
_WATCH_SECONDS: Final = 2.0
# How many groups are listed that were last published to.
_RECENT: Final = 20
# Moves a terminal's cursor home, and clears what follows.
_CLEAR: Final = "\x1b[H\x1b[J"


class Command(GroupCommand):
    help = "Shows which processes have open streams, of which groups, and how they fare."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "groups", nargs="*", metavar="group", help="also say how these groups stand"
        )
        parser.add_argument(
            "--wait",
            type=_seconds,
            default=2.0,
            help="seconds to wait for the answers of the processes (default: 2)",
        )
        parser.add_argument(
            "--recent",
            action="store_true",
            help="also list the groups that were last changed",
        )
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument(
            "--watch", action="store_true", help="go on until Ctrl-C, every two seconds"
        )

    def act(self, **options: Any) -> None:
        groups = [validate_group(group) for group in options["groups"]]
        try:
            while True:
                shown = self._shown(groups, options)
                if options["watch"] and self.stdout.isatty() and not options["json"]:
                    shown = _CLEAR + shown
                self.stdout.write(shown)
                if not options["watch"]:
                    break
                self.stdout.flush()
                time.sleep(max(_WATCH_SECONDS - options["wait"], 0))
        except KeyboardInterrupt:
            pass

    def _shown(self, groups: Sequence[str], options: dict[str, Any]) -> str:
        recent = _recent() if options["recent"] else None
        reports = processes(options["wait"])
        names = {group: full_name(current_namespace(), group) for group in groups}
        states = get_store().states(list(names.values()))
        if options["json"]:
            shown = {
                "processes": [asdict(report) for report in reports],
                "groups": {group: _state(states[name]) for group, name in names.items()},
            }
            return json.dumps(shown if recent is None else {**shown, "recent": recent})
        lines = [*_process_lines(reports, options["wait"])]
        if any(report.groups for report in reports):
            lines += ["", *_group_lines(reports)]
        if recent is not None:
            lines += ["", *_recent_lines(recent)]
        for group, name in names.items():
            lines += ["", f"{group}: {said_of(states[name], group)} {_streams_of(name, reports)}"]
        return "\n".join(lines).rstrip()


def _recent() -> list[dict[str, Any]]:
    """Return what is known of the groups that were last changed, the last one first.

    Raises:
        CommandError: The event store cannot list groups.
    """
    store = get_store()
    if not isinstance(store, DatabaseStore):
        raise CommandError(
            "Only the database store can list its groups. Name those that you mean: sse_status "
            "GROUP."
        )
    rows = of_tenant(EventGroup.objects.using(store.using), current_namespace())
    return [
        {
            "group": plain_name(row.name),
            "cancelled": row.cancelled,
            "head": row.head,
            "kept": row.kept_events,  # type: ignore[attr-defined]
            "last_id": format_position({row.name: row.head}) if row.head else None,
            "changed": datetime.fromtimestamp(row.changed / 1_000_000, UTC).isoformat(
                " ", "milliseconds"
            ),
        }
        for row in rows.order_by("-changed")[:_RECENT]
    ]


def _recent_lines(recent: Sequence[dict[str, Any]]) -> Iterable[str]:
    if not recent:
        return ["Nothing was published yet, or it was forgotten."]
    rows = [
        (
            each["group"],
            each["changed"],
            "cancelled" if each["cancelled"] else "open",
            each["kept"],
            each["last_id"] or "-",
        )
        for each in recent
    ]
    return _table([("group", "last changed", "is", "kept", "last id"), *rows])


def _process_lines(reports: Sequence[ProcessReport], wait: float) -> Iterable[str]:
    if not reports:
        return [
            f"No process has answered within {wait:g} seconds: none has an open stream, or those "
            "that have use another event store or hear no doorbells (try a longer --wait)."
        ]
    rows = [
        (
            report.process,
            report.streams,
            report.open_groups,
            report.users,
            report.slow_clients,
            _bytes(report.waiting_bytes),
            report.counters.opened,
            sum(report.counters.closed.values()),
            sum(report.counters.refused.values()),
            report.counters.published,
            report.counters.delivered,
            report.counters.resets,
            f"{report.loop_lag * 1000:.0f} ms",
            f"{report.store_lag:.1f} s",
        )
        for report in reports
    ]
    return _table([_COLUMNS, *rows])


def _group_lines(reports: Iterable[ProcessReport]) -> Iterable[str]:
    groups: Counter[str] = Counter()
    for report in reports:
        groups.update(report.groups)
    return _table([("group", "streams"), *groups.most_common(20)])


def _streams_of(name: str, reports: Sequence[ProcessReport]) -> str:
    if not reports:
        return "Streams: unknown, since nobody has answered."
    streams = sum(report.groups.get(name, 0) for report in reports)
    # A report names the groups with the most streams.
    are_all = all(
        name in report.groups or report.open_groups <= len(report.groups) for report in reports
    )
    return f"Streams: {streams}." if are_all else f"Streams: {streams}, or a few more."


def _state(state: GroupState) -> dict[str, Any]:
    return {
        "cancelled": state.cancelled,
        "head": state.head,
        "kept": state.head - state.oldest + 1,
        "is_known": state.head != state.origin,
    }


def _table(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return the lines of a table whose first column is text, and whose others are figures."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            str(cell).rjust(width) if place else str(cell).ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _bytes(count: int) -> str:
    return f"{count} B" if count < 10_000 else f"{count // 1024} KiB"


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 60:
        raise ArgumentTypeError("it must be above 0, and 60 at most")
    return seconds
