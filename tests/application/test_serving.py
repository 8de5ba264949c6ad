"""The queue: bounded, and fair between clients."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.application.serving import FairQueue, QueueFullError


def emptied(queue: FairQueue[str]) -> list[str]:
    """All items in the order in which they leave."""
    taken = []
    while (item := queue.take()) is not None:
        taken.append(item)
    return taken


def test_clients_take_turns_and_each_ones_items_keep_their_order() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        assert queue.put_all(item[0], [item]) == []
    assert len(queue) == 6
    assert emptied(queue) == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert len(queue) == 0


def test_a_full_queue_takes_a_place_from_the_client_with_the_most() -> None:
    queue: FairQueue[str] = FairQueue(4)
    for item in ("a1", "a2", "a3", "a4"):
        queue.put_all("a", [item])
    with pytest.raises(QueueFullError):
        queue.put_all("a", ["a5"])
    assert queue.put_all("b", ["b1"]) == ["a4"]
    assert queue.put_all("b", ["b2"]) == ["a3"]
    with pytest.raises(QueueFullError):
        queue.put_all("b", ["b3"])  # both have two
    assert emptied(queue) == ["a1", "b1", "a2", "b2"]


def test_what_is_discarded_never_leaves() -> None:
    queue: FairQueue[str] = FairQueue(4)
    for item in ("a1", "a2", "b1"):
        queue.put_all(item[0], [item])
    queue.discard("b1")
    queue.discard("a1")
    queue.discard("never there")
    assert list(queue) == ["a2"]
    assert emptied(queue) == ["a2"]


PUTS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 5)), max_size=30)


@given(PUTS, st.integers(1, 12))
def test_items_come_in_together_or_change_nothing(puts: list[tuple[str, int]], size: int) -> None:
    queue: FairQueue[tuple[str, int, int]] = FairQueue(size)
    for number, (client, n) in enumerate(puts):
        items = [(client, number, index) for index in range(n)]
        before = list(queue)
        try:
            displaced = queue.put_all(client, items)
        except QueueFullError:
            assert list(queue) == before
            continue
        assert sorted(queue) == sorted(set(before) - set(displaced) | set(items))
        assert set(displaced) <= set(before)
        assert len(displaced) == max(0, len(before) + n - size)
        counts = Counter(name for name, *_ in queue)
        assert all(counts[name] + 1 >= counts[client] for name, *_ in displaced)


@given(st.lists(st.sampled_from("abcd"), max_size=60), st.integers(1, 12))
def test_nothing_is_lost_and_no_client_waits_for_two_of_another(clients: list[str], size: int) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(size)
    inside = set()
    for number, client in enumerate(clients):
        try:
            displaced = queue.put_all(client, [(client, number)])
        except QueueFullError:
            continue
        inside.add((client, number))
        inside -= set(displaced)
        assert len(queue) == len(inside) <= size
    order = []
    while (item := queue.take()) is not None:
        order.append(item)
    assert set(order) == inside
    for at, (client, _) in enumerate(order):
        waiting = {name for name, _ in order[at + 1 :]} - {client}
        again = next((i for i in range(at + 1, len(order)) if order[i][0] == client), len(order))
        assert waiting <= {name for name, _ in order[at + 1 : again]} or again == len(order)
