"""``python -m tests.soak``: runs the soak test, and prints the table."""

import argparse
import asyncio
import os
import random
import sys
import tempfile
from pathlib import Path

from tests.live.engines import ENGINES
from tests.soak.run import soak
from tests.soak.verdict import table


def main() -> int:
    """Return 1 where anything was lost, repeated or told out of order."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("engines", nargs="*", help=f"some of: {', '.join(ENGINES)}; all without")
    parser.add_argument("--minutes", type=float, default=10, help="of faults, on each engine")
    parser.add_argument("--seed", default=str(random.randrange(10**6)), help="of what goes wrong")
    parser.add_argument("--break", choices=["healing"], dest="broken", help="has to fail")
    chosen = parser.parse_args()
    # The clients read positions, which are signed.
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    if unknown := set(chosen.engines) - set(ENGINES):
        parser.error(f"no such engine: {', '.join(sorted(unknown))}")
    application = "tests.soak.broken:application" if chosen.broken else "tests.asgi:application"
    rows = []
    print(f"seed {chosen.seed}")
    for name in chosen.engines or ENGINES:
        engine = ENGINES[name]
        if lacking := engine.lacks():
            print(f"{engine.name}: {lacking} is not installed")
            return 1
        directory = Path(tempfile.mkdtemp(prefix=f"soak-{name}-"))
        row = asyncio.run(
            soak(
                engine,
                directory,
                seconds=chosen.minutes * 60,
                pause=4,
                seed=chosen.seed,
                application=application,
            )
        )
        rows.append(row)
        print(f"\n{row.engine}: {'passed' if row.passed else f'FAILED, see {directory}'}")
        print("\n".join([*row.complaints, *row.findings.examples]), flush=True)
    print(f"\n{table(rows)}")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
