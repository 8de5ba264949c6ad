"""Who is next: a bounded queue that is fair between clients."""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class QueueFullError(Exception):
    """There is no place for another one of this client."""


class FairQueue(Generic[Item]):
    """Clients take turns, whoever asked for more; each one's own items leave in the order in which they came."""

    def __init__(self, size: int) -> None:
        """At most size items wait, of all clients together."""
        self.size = size
        self._waiting: OrderedDict[str, deque[Item]] = OrderedDict()  # the first client is next

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Item]:
        """Every item, in no order that matters."""
        return iter([item for items in self._waiting.values() for item in items])

    def put_all(self, client: str, items: Sequence[Item]) -> list[Item]:
        """Take items in, all or none. When full, the newest item of the client with the most makes room for each.

        Returns those. Raises QueueFullError, with nothing changed, when that client would be this one, or would have only
        one more than it.
        """
        counts = {name: len(waiting) for name, waiting in self._waiting.items()}
        counts.setdefault(client, 0)
        total = len(self)
        for _ in items:
            if total < self.size:
                total += 1
            else:
                greediest = max(counts, key=counts.__getitem__)
                if counts[greediest] <= counts[client] + 1:
                    raise QueueFullError
                counts[greediest] -= 1
            counts[client] += 1
        displaced = [
            waiting.pop()
            for name, waiting in self._waiting.items()
            if name != client
            for _ in range(len(waiting) - counts[name])
        ]
        self._waiting.setdefault(client, deque()).extend(items)
        return displaced

    def take(self) -> Item | None:
        """The next item, if there is one; its client goes to the end of the line."""
        if not self._waiting:
            return None
        client, items = next(iter(self._waiting.items()))
        item = items.popleft()
        self._waiting.move_to_end(client)
        if not items:
            del self._waiting[client]
        return item

    def discard(self, item: Item) -> None:
        """Take an item out, wherever it waits; one that is not here is ignored."""
        for client, items in self._waiting.items():
            if item in items:
                items.remove(item)
                if not items:
                    del self._waiting[client]
                return
