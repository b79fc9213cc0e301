"""A process that produces an answer, as a task of a queue does that is tried again.

``python -m tests.soak.producer GROUP WORDS MILLISECONDS``
"""

import logging
import sys
import time

import django

from django_sse.exceptions import Cancelled, GroupCancelled
from django_sse.producing import produce
from tests.soak.words import Run

_PAUSE_SECONDS = 0.5


def say(group: str, words: int, delay: int) -> None:
    """Produce the answer, unless the group is cancelled."""
    begun = False
    while not begun:
        try:
            with produce(group) as producer:
                begun = True
                run = Run(group)
                for number in range(1, words + 1):
                    producer.publish(run.word(number))
                    time.sleep(delay / 1000)
                run.said(words)
        except (GroupCancelled, Cancelled):
            return
        except Exception:
            logging.exception("Producing has failed.")
            time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    django.setup()
    group, words, delay = sys.argv[1:]
    say(group, int(words), int(delay))
