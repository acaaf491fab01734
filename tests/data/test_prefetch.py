"""Items are made ahead by a thread, which ends with its consumer."""

from __future__ import annotations

import threading
import time

import pytest

from infodisent.data.prefetch import prefetched


def _threads() -> int:
    return sum(t.name == "infodisent-prefetch" for t in threading.enumerate())


def test_the_same_items_in_order():
    assert list(prefetched(range(50))) == list(range(50))
    assert list(prefetched([])) == []
    assert list(prefetched([None, (), 0])) == [None, (), 0]
    assert _threads() == 0


def test_made_ahead_but_not_without_end():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    consumer = prefetched(items(), ahead=2)
    next(consumer)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 4  # the one in hand, two that wait, one that wants to
    consumer.close()
    assert _threads() == 0


def test_errors_come_where_their_item_would():
    def items():
        yield 1
        raise OSError("torn")

    consumer = prefetched(items())
    assert next(consumer) == 1
    with pytest.raises(OSError, match="torn"):
        next(consumer)
    assert _threads() == 0
