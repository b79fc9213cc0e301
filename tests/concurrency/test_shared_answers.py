"""One answer for all who ask."""

import asyncio
from threading import Barrier

import pytest

from django_sse.concurrency import shared_answers
from django_sse.concurrency.shared_answers import SharedAnswer
from django_sse.testing.threads import in_thread
from tests.streams import until


class Question:
    """Counts how often it is asked, and is answered once it may be."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_be_answered = asyncio.Event()

    async def __call__(self) -> int:
        self.asked += 1
        await self.may_be_answered.wait()
        return self.asked


async def test_all_who_ask_meanwhile_and_soon_after_get_one_answer() -> None:
    question = Question()
    answer = SharedAnswer(question)
    asking = [asyncio.create_task(answer.get()) for _ in range(3)]
    await until(lambda: question.asked)
    question.may_be_answered.set()
    assert await asyncio.gather(*asking, answer.get()) == [1, 1, 1, 1]


async def test_it_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    question = Question()
    question.may_be_answered.set()
    answer = SharedAnswer(question)
    assert await answer.get() == 1
    monkeypatch.setattr(shared_answers, "_SECONDS", 0.0)
    assert await answer.get() == 2


async def test_who_leaves_takes_the_answer_from_nobody_else() -> None:
    question = Question()
    answer = SharedAnswer(question)
    first, second = (asyncio.create_task(answer.get()) for _ in range(2))
    await until(lambda: question.asked)
    first.cancel()
    await asyncio.wait([first])
    question.may_be_answered.set()
    assert await second == 1


async def test_all_hear_of_a_failure() -> None:
    async def fail() -> None:
        raise OSError("away")

    answer = SharedAnswer(fail)
    for _ in range(2):
        with pytest.raises(OSError, match="away"):
            await answer.get()


async def test_event_loops_share_an_answer() -> None:
    asked = 0
    both_ask = Barrier(2, timeout=10)

    async def ask() -> int:
        nonlocal asked
        asked += 1
        return asked

    answer = SharedAnswer(ask)

    def on_another_loop() -> int:
        both_ask.wait()
        return asyncio.run(answer.get())

    assert await asyncio.gather(*(in_thread(on_another_loop) for _ in range(2))) == [1, 1]
