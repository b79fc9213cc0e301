"""A model that needs no network: a Markov chain of order 2.

It has read the first chapter of "Alice's Adventures in Wonderland" by Lewis Carroll (1865), which
is in the public domain.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

_TEXT = Path(__file__).with_name("alice.txt").read_text(encoding="utf-8")
# A quotation or a bracket that is opened would not be closed.
_WORDS = re.sub(r"(?<!\w)'|'(?!\w)|[()]", "", _TEXT).split()

_FOLLOWERS = defaultdict(list)
for _pair, _follower in zip(pairwise(_WORDS), _WORDS[2:], strict=False):
    _FOLLOWERS[_pair].append(_follower)
_BEGINNINGS = [pair for pair in _FOLLOWERS if pair[0][0].isupper()]


def write(seed: str, least: int) -> Iterator[str]:
    """Yield words, to the end of the sentence in which there are as many as asked for.

    Args:
        seed: The same seed gives the same words.
    """
    random = Random(seed)
    pair = random.choice(_BEGINNINGS)
    written = 0
    while True:
        yield pair[0]
        written += 1
        if written >= least and pair[0].endswith((".", "!", "?")):
            return
        followers = _FOLLOWERS.get(pair)
        # Nothing follows the last words of the text.
        pair = (pair[1], random.choice(followers)) if followers else random.choice(_BEGINNINGS)
