"""The next batch is read while this one is computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


def prefetched(items: Iterable[Item], ahead: int = 2) -> Iterator[Item]:
    """The same items, made by a thread, at most `ahead` of them before they are asked for.

    Decoding and resizing pictures leave the interpreter to others, so they run beside a backbone.
    What the iterable raises is raised here, where its item would have come. A consumer that stops
    early ends the thread.
    """
    waiting: queue.Queue[Any] = queue.Queue(ahead)
    left = threading.Event()

    def put(item: Any) -> bool:
        while not left.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:  # belongs to the consumer
            put((_END, error))

    thread = threading.Thread(target=make, name="infodisent-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        left.set()
        thread.join()
