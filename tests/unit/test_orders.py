"""Which order is asked, and what asking less would have saved, against sums made by hand."""

from __future__ import annotations

import pytest

from lion_ray.core.records import ORDERS, instruction_id
from lion_ray.discrimination.orders import BothOrders, first_order, needs_second, replay
from lion_ray.discrimination.scores import combine

IDS = [instruction_id(f"Instruction {n}.") for n in range(2000)]


def test_the_first_order_depends_on_the_id_and_halves_a_pool() -> None:
    first = [first_order(row_id) for row_id in IDS]
    assert first == [first_order(row_id) for row_id in IDS]
    # 4.5 standard deviations of a fair coin.
    assert abs(first.count(ORDERS[0]) - 1000) < 100
    assert set(first) == set(ORDERS)


@pytest.mark.parametrize(
    ("pair", "margin", "near"),
    [((9.0, 8.0), 0.0, True), ((9.0, 7.0), 0.5, False), ((9.0, 7.0), 1.0, True), ((4.0, 6.0), 2.0, False)],
)
def test_near_is_within_the_margin_of_tau(pair: tuple[float, float], margin: float, near: bool) -> None:
    assert needs_second(pair, 1.0, margin) is near


def test_one_order_counts_only_where_the_other_was_not_asked() -> None:
    assert combine((9, 4), None) is None
    assert combine((9, 4), None, one_order=True) == (9, 4)
    assert combine(None, (9, 4), one_order=True) == (9, 4)
    assert combine((9, 4), (7, 6), one_order=True) is None, "both were asked"
    assert combine(None, None, one_order=True) is None
    assert combine((11, 4), None, one_order=True) is None


def by_first(row_id: str, first: tuple[float, float], second: tuple[float, float], **more: float | int) -> BothOrders:
    pairs = {first_order(row_id): first}
    other = next(order for order in ORDERS if order not in pairs)
    return BothOrders(row_id, **(pairs | {other: second}), **more)  # type: ignore[arg-type]


def test_a_replay_counts_what_is_saved_and_what_changes() -> None:
    rows = [
        by_first(IDS[0], (9, 3), (8, 4), cost_usd=0.02),  # d 6, 5 in the mean: hard either way
        by_first(IDS[1], (9, 6), (3, 9), cost_usd=0.04),  # d 3, but -1.5 in the mean: hard by one order alone
        by_first(IDS[2], (5, 6), (9, 4), cost_usd=0.06),  # d -1, but 2 in the mean: easy by one order alone
        by_first(IDS[3], (8, 7), (8, 7), cost_usd=0.09, calls=3),  # d 1: at tau
    ]
    assert [row.gap for row in rows] == [5, -1.5, 2, 1]
    nothing, one, two, all_but_one = replay(rows, tau=1.0, margins=(0, 1, 2, 4))
    assert (nothing.asked_second, nothing.calls_saved) == (1, 3)
    assert nothing.calls_share == pytest.approx(3 / 9)
    assert nothing.usd_saved == pytest.approx(0.01 + 0.02 + 0.03)
    assert (nothing.became_hard, nothing.became_easy, nothing.changed) == (1, 1, 2)
    assert (nothing.hard, nothing.hard_always) == (3, 3)
    assert one.asked_second == 1
    assert (two.asked_second, two.changed, two.calls_saved) == (3, 0, 1)
    assert all_but_one.asked_second == 3
    assert all_but_one.usd_saved == pytest.approx(0.01)


def test_a_replay_without_prices_or_rows_makes_none_up() -> None:
    (found,) = replay([by_first(IDS[0], (9, 3), (8, 4))], 1.0, [0.5])
    assert found.usd_saved is None
    (empty,) = replay([], 1.0, [0.5])
    assert (empty.rows, empty.calls_share, empty.usd_saved) == (0, 0.0, None)
