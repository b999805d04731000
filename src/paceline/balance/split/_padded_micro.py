"""Cut padded global batches into micro-batches, and give those to workers.

A micro-batch costs its number of examples times the cost of the most expensive one, because all are
padded to that, plus what every micro-batch costs. Cutting a batch that is sorted by cost saves
padding; what a micro-batch costs by itself limits the number of cuts. Everything here is pure.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled, compiled_beyond
from paceline.balance.split._cheapest_cuts import cheapest_cuts
from paceline.balance.split._pace import Pace
from paceline.balance.split._padded import PRECISION, can_hold, earliest_end, fill
from paceline.balance.split._sorting import descending_order, sort_order

# Cuts that are cheapest in sum may be too few to balance. So finer ones are tried, too: made for
# a part of the overhead, and none of them longer than a share of a worker's load.
OVERHEAD_PARTS = np.array([1.0, 0.4])
LOAD_SHARES = np.array([1.0, 0.5, 0.25])
# Below this no cost is left to divide by.
TINY = 1e-300


class MicroBatchCosts(NamedTuple):
    """What micro-batches cost, and what one of them may hold at most.

    Attributes:
        overhead: Cost of a micro-batch whatever it holds.
        rate: Time per unit of cost of each worker, shape `(num_workers,)`.
        start: Time of each worker in a step that no micro-batch causes, same shape.
        most: Largest padded cost, tokens and bytes, and number of examples; infinite for none.
    """

    overhead: float
    rate: NDArray[np.float64]
    start: NDArray[np.float64]
    most: NDArray[np.float64]


class Cuts(NamedTuple):
    """Room for the micro-batches of one step: where each ends, what it costs, who gets it."""

    end: NDArray[np.int64]
    cost: NDArray[np.float64]
    worker: NDArray[np.int64]


def plan_padded_micro_batches(
    amounts: NDArray[np.float64], costs: MicroBatchCosts
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the worker and the micro-batch of each example, and how many each worker gets.

    Each step, sorted by cost, is cut where that is cheapest in sum: an exact dynamic program over
    contiguous cuts, in O(batch_size) because the lines that it minimises over come in the order of
    their slopes [1]. The same is done for 0.4 of the overhead. In both, cuts above 1, 1/2 or 1/4 of
    the slowest worker's share of the load are cut evenly, and micro-batches go, most expensive
    first, to the worker that then ends first. Of these six ways the one whose last worker ends
    first is kept; ties go to the first. Where the best single micro-batch per worker, as
    `split_padded` finds it, ends before, it is taken: small batches leave little to cut.

    Args:
        amounts: Cost, tokens and bytes of each example, shape `(3, num_steps, batch_size)`. The
            cost must grow with the length that is padded; no example alone is over a limit.
        costs: Overhead, workers and limits; as many workers as a step has examples, at most.

    Returns:
        Worker and micro-batch within that worker, lightest first, of each example, both of shape
        `(num_steps, batch_size)`; number of micro-batches, shape `(num_steps, num_workers)`, at
        least 1.

    References:
        [1] P. Brucker, "Efficient algorithms for some path partitioning problems", Discrete
        Applied Mathematics 62, 1995.
    """
    order = descending_order(amounts[0])
    sorted_amounts = np.take_along_axis(amounts, order[None], axis=2)
    num_steps, batch_size = order.shape
    worker = np.empty((num_steps, batch_size), dtype=np.int64)
    micro = np.empty((num_steps, batch_size), dtype=np.int64)
    counts = np.empty((num_steps, len(costs.rate)), dtype=np.int64)
    _plan_steps(np.ascontiguousarray(sorted_amounts), costs, worker, micro, counts)
    by_slot = np.empty((2, num_steps, batch_size), dtype=np.int64)
    np.put_along_axis(by_slot, order[None], np.stack([worker, micro]), axis=2)
    return by_slot[0], by_slot[1], counts


@compiled_beyond(60_000)
def _plan_steps(
    amounts: NDArray[np.float64],
    costs: MicroBatchCosts,
    worker: NDArray[np.int64],
    micro: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    batch_size = amounts.shape[2]
    best = _room(batch_size)
    tried = _room(batch_size)
    cheapest = np.empty(batch_size, dtype=np.int64)
    speed, slowest_rate = 0.0, 0.0
    for rate in costs.rate:
        speed, slowest_rate = speed + 1.0 / rate, max(slowest_rate, rate)
    slowest = 1.0 / (slowest_rate * speed)  # Its share of the load.
    for step in range(amounts.shape[1]):
        values = amounts[:, step]
        num_best, least = 0, np.inf
        for part in OVERHEAD_PARTS:
            num_cheapest = cheapest_cuts(values[0], costs.overhead * part, cheapest)
            total = 0.0
            begin = 0
            for number in range(num_cheapest):
                end = cheapest[number]
                total += (end - begin) * values[0, begin] + costs.overhead
                begin = end
            for share in LOAD_SHARES:
                longest = max(share * total * slowest, TINY)
                number = _split_long(values, cheapest[:num_cheapest], longest, costs, tried)
                ends_s = _give_away(number, costs, least, tried)
                if ends_s < least:
                    num_best, least = number, ends_s
                    best, tried = tried, best
        if _give_one_each(values, costs, least, tried):
            num_best = len(costs.rate)
            best, tried = tried, best
        _write(num_best, best, worker[step], micro[step], counts[step])


@compiled
def _give_one_each(
    values: NDArray[np.float64], costs: MicroBatchCosts, least: float, cuts: Cuts
) -> bool:
    """Give each worker one micro-batch within the limits, if all then end before `least`."""
    pace = Pace(costs.rate, costs.start + costs.overhead * costs.rate)
    if not can_hold(values[0], least * (1 - PRECISION), pace):
        return False
    counts = np.empty(len(costs.rate), dtype=np.int64)
    fill(values[0], earliest_end(values[0], pace, PRECISION), pace, counts)
    begin = 0
    for worker in range(len(counts)):
        end = begin + counts[worker]
        if _parts_within(values, begin, end, costs.most) > 1:
            return False
        cuts.end[worker] = end
        cuts.cost[worker] = counts[worker] * values[0, begin] + costs.overhead
        cuts.worker[worker] = worker
        begin = end
    return True


@compiled
def _room(batch_size: int) -> Cuts:
    return Cuts(
        np.empty(batch_size, dtype=np.int64),
        np.empty(batch_size, dtype=np.float64),
        np.empty(batch_size, dtype=np.int64),
    )


@compiled
def _split_long(
    values: NDArray[np.float64],
    cheapest: NDArray[np.int64],
    longest: float,
    costs: MicroBatchCosts,
    cuts: Cuts,
) -> int:
    """Cut evenly what costs more than `longest`, is over a limit, or leaves a worker without.

    Returns:
        How many micro-batches there are.
    """
    least = np.ones(len(cheapest), dtype=np.int64)
    begin = 0
    for number in range(len(cheapest)):
        end = cheapest[number]
        cost = (end - begin) * values[0, begin] + costs.overhead
        parts = max(int(np.ceil(cost / longest)), _parts_within(values, begin, end, costs.most))
        least[number] = min(max(parts, 1), end - begin)
        begin = end
    _fill_workers(cheapest, least, len(costs.rate))
    number, begin = 0, 0
    for cut in range(len(cheapest)):
        first, size = begin, cheapest[cut] - begin
        for part in range(1, least[cut] + 1):
            end = first + size * part // least[cut]
            cuts.end[number] = end
            cuts.cost[number] = (end - begin) * values[0, begin] + costs.overhead
            number, begin = number + 1, end
    return number


@compiled
def _parts_within(
    values: NDArray[np.float64], begin: int, end: int, most: NDArray[np.float64]
) -> int:
    """Return into how many even parts a cut must go for each to be within the limits."""
    size, fitting = end - begin, most[3]
    if min(most[0], most[1], most[2], most[3]) == np.inf:
        return 1
    for row in range(3):
        largest = 0.0
        for value in values[row, begin:end]:
            largest = max(largest, value)
        if largest > 0:
            fitting = min(fitting, most[row] / largest)
    if fitting >= size:
        return 1
    return int(np.ceil(size / max(np.floor(fitting), 1.0)))


@compiled
def _fill_workers(cheapest: NDArray[np.int64], parts: NDArray[np.int64], num_workers: int) -> None:
    """Raise the number of parts of the longest cuts until each worker can get one."""
    missing = num_workers
    for cut in range(len(parts)):
        missing -= parts[cut]
    while missing > 0:
        widest, most = 0, 0.0
        for cut in range(len(cheapest)):
            size = cheapest[cut] - (cheapest[cut - 1] if cut else 0)
            if size > parts[cut] and size / parts[cut] > most:
                widest, most = cut, size / parts[cut]
        parts[widest] += 1
        missing -= 1


@compiled
def _give_away(number: int, costs: MicroBatchCosts, least: float, cuts: Cuts) -> float:
    """Give each micro-batch to the worker that then ends first; return when the last one ends.

    Infinite where that is not before `least`. No worker stays without.
    """
    rate, num_workers, num_empty = costs.rate, len(costs.rate), len(costs.rate)
    finish, held = costs.start.copy(), np.zeros(num_workers, np.int64)
    latest, work, speed, are_alike = finish[0], 0.0, 0.0, True
    for worker in range(num_workers):
        latest = max(latest, finish[worker])
        work, speed = work + finish[worker] / rate[worker], speed + 1.0 / rate[worker]
        are_alike = are_alike and rate[worker] == rate[0] and finish[worker] == finish[0]
    order, negative = np.empty(number, dtype=np.int64), np.empty(number)
    for cut in range(number):
        negative[cut], work = -cuts.cost[cut], work + cuts.cost[cut]
    if work / speed * (1 - PRECISION) >= least:  # However they are given away.
        return np.inf
    sort_order(negative, order, np.empty_like(order))
    for given in range(number):
        cut, must_fill = order[given], number - given <= num_empty
        chosen, time = given, rate[0] * cuts.cost[cut]
        earliest = costs.start[0] + time
        # Alike workers get their first in turn, unless a second is too short to change a sum.
        is_turn = are_alike and num_empty == num_workers - given > 0
        if not (is_turn and earliest + time > earliest):
            chosen, earliest = _first_to_end(finish, rate, cuts.cost[cut], held, must_fill)
        cuts.worker[cut] = chosen
        finish[chosen] = earliest
        num_empty -= held[chosen] == 0
        held[chosen] += 1
        latest = max(latest, earliest)
        if latest >= least:
            return np.inf
    return float(latest)


@compiled
def _first_to_end(
    finish: NDArray[np.float64],
    rate: NDArray[np.float64],
    cost: float,
    held: NDArray[np.int64],
    must_fill: bool,
) -> tuple[int, float]:
    """Return the worker that ends first with one more micro-batch, and when."""
    chosen, earliest = 0, np.inf
    for worker in range(len(rate)):
        end = finish[worker] + rate[worker] * cost
        if end < earliest and not (must_fill and held[worker]):
            chosen, earliest = worker, end
    return chosen, earliest


@compiled
def _write(
    number: int,
    cuts: Cuts,
    worker: NDArray[np.int64],
    micro: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Number each worker's micro-batches, lightest first, and write them to the examples."""
    counts[:] = 0
    order, room = np.empty(number, dtype=np.int64), np.empty(number, dtype=np.int64)
    sort_order(cuts.cost[:number], order, room)
    for cut in order:
        begin = cuts.end[cut - 1] if cut else 0
        mine = cuts.worker[cut]
        worker[begin : cuts.end[cut]] = mine
        micro[begin : cuts.end[cut]] = counts[mine]
        counts[mine] += 1
