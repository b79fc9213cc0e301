"""``python -m tests.fuzz``: looks for inputs that break the package, guided by what they reach.

What breaks it is written to a file, and tried again by ``python -m tests.fuzz FILE``.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["django_sse"]):
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    from tests.fuzz.run import MAX_BYTES, Fuzzer, chosen_at_random

_SEEDS = 300
_REPORT_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("again", nargs="?", type=Path, help="a file with what broke it")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="how long to look")
    parser.add_argument("--runs", type=float, default=float("inf"), help="how many sessions to run")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    with Fuzzer() as fuzzer:
        if chosen.again:
            fuzzer.session(chosen.again.read_bytes())
            fuzzer.assert_nothing_is_left()
            return
        print(f"seed {chosen.seed}", flush=True)
        look(fuzzer, chosen.seed, chosen.seconds, chosen.runs)


def look(fuzzer: Fuzzer, seed: int, seconds: float, runs: float) -> None:
    """Run sessions until the time is over or there were enough. Does not return."""
    begin = reported = time.monotonic()

    def run(data: bytes) -> None:
        nonlocal reported
        fuzzer.session(data)
        now = time.monotonic()
        done = now - begin > seconds or fuzzer.tally["sessions"] >= runs
        if done:
            fuzzer.assert_nothing_is_left()
        if done or now - reported > _REPORT_SECONDS:
            reported = now
            print(f"{now - begin:.0f} s: {dict(fuzzer.tally)}", flush=True)
        if done:
            # libFuzzer would go on, and print what it takes for a crash at any other exit.
            os._exit(0)

    with tempfile.TemporaryDirectory(prefix="fuzz-") as corpus:
        for number, data in enumerate(chosen_at_random(seed, _SEEDS)):
            Path(corpus, str(number)).write_bytes(data)
        # Of full length from the beginning: a session of a few bytes does little.
        options = [f"-seed={seed}", f"-max_len={MAX_BYTES}", "-len_control=0", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *options, corpus], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
