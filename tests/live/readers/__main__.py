"""``python -m tests.live.readers``: writes the table of clients into the documentation."""

from tests.live.readers.matrix import PAGE, page

PAGE.parent.mkdir(exist_ok=True)
PAGE.write_text(page())
