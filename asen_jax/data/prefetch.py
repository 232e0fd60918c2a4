"""Start work before its result is needed."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar('Item')


def prefetch(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The same items, but requested from `items` `count` places ahead of the caller.

    If requesting an item starts work (decoding in another thread, a batch on the device), that work overlaps with the
    caller's own.
    """
    started = deque()
    for item in items:
        started.append(item)
        if len(started) > count:
            yield started.popleft()
    yield from started
