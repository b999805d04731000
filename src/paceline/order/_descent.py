"""Signs that keep running sums small, one row at a time.

A row enters a tree of running sums at its root and leaves each *node* for one of two
children, so that both keep about the same sum. With one level that is the balancing of
GraB; with more it is recursive balancing, done online: a row goes down as far as it can
at once, so nothing but the sums and the rows that wait for their partner is stored.
Nodes are numbered like those of a heap: the root is 1, the children of k are 2k and 2k + 1.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled
from paceline.order._rows import dot


@compiled
def _uniform(seed: int, number: int) -> float:
    """Return a random number in [0, 1) that depends on nothing but its arguments.

    The mixing steps are those of SplitMix64 (G. Steele, D. Lea, C. Flood, 2014).
    """
    x = np.uint64(seed) + np.uint64(number + 1) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return float(x >> np.uint64(11)) * 2.0**-53


@compiled
def _is_minus(score: np.float32, caution: float, draw: float) -> bool:
    """Return which sign a row gets whose product with the running sum is `score`.

    Without caution the one that shortens the sum, plus in a tie; with it a random one,
    the likelier the more it shortens, after the self-balancing walk.
    """
    if caution == 0.0:
        return bool(score > 0.0)
    return bool(draw >= 0.5 - score / (2.0 * caution))


@compiled
def _move(total: NDArray[np.float32], row: NDArray[np.float32], is_minus: bool) -> None:
    if is_minus:
        for i in range(len(total)):
            total[i] -= row[i]
    else:
        for i in range(len(total)):
            total[i] += row[i]


class MeanTrees(NamedTuple):
    """Trees of running sums of rows, less the mean of the epoch before.

    Attributes:
        tree: Tree of each example, shape `(num_examples,)`.
        centre: Mean of the epoch before per tree, shape `(num_trees, dim)`.
        sums: Running sums, shape `(num_trees, num_leaves, dim)`.
        node: Where each example arrived; 0 for nowhere. Shape `(num_examples,)`.
        arrival: How many came before it; same shape.
        row_sum: Sum of the rows of this epoch per tree.
        num_rows: Their number per tree.
    """

    tree: NDArray[np.int64]
    centre: NDArray[np.float32]
    sums: NDArray[np.float32]
    node: NDArray[np.int64]
    arrival: NDArray[np.int64]
    row_sum: NDArray[np.float64]
    num_rows: NDArray[np.int64]


class PairTrees(NamedTuple):
    """Trees of running sums of differences of pairs.

    Attributes:
        lane: Lane of each example, shape `(num_examples,)`; pairs are within a lane.
        sums: Running sums, shape `(1 or num_lanes, num_leaves, dim)`; one is shared.
        waiting: Row that waits per lane and node, shape `(num_lanes, num_leaves, dim)`.
        waiting_id: Its example, -1 for none; shape `(num_lanes, num_leaves)`.
        node: Where each example arrived; 0 for nowhere. Shape `(num_examples,)`.
        arrival: How many came before it; same shape.
        walk: How many rows came, and the largest squared length of a difference; what
            is negative there asks for no walk.
    """

    lane: NDArray[np.int64]
    sums: NDArray[np.float32]
    waiting: NDArray[np.float32]
    waiting_id: NDArray[np.int64]
    node: NDArray[np.int64]
    arrival: NDArray[np.int64]
    walk: NDArray[np.float64]


@compiled
def mean_balance(rows: NDArray[np.float32], ids: NDArray[np.int64], trees: MeanTrees) -> None:
    """Send rows, less the mean of the epoch before, down their trees; in place.

    Args:
        rows: Shape `(num, dim)`.
        ids: Example of each row, shape `(num,)`; one that has a node already is left out.
        trees: Changed in place.
    """
    tree, centre, sums, node, arrival, row_sum, num_rows = trees
    num_leaves = sums.shape[1]
    centred, room = np.empty_like(rows[0]), np.empty_like(rows[0])
    for r in range(len(ids)):
        example = ids[r]
        if node[example]:
            continue
        t = tree[example]
        for i in range(rows.shape[1]):
            row_sum[t, i] += rows[r, i]
            centred[i] = rows[r, i] - centre[t, i]
        arrival[example] = num_rows.sum()
        num_rows[t] += 1
        here = 1
        while here < num_leaves:
            is_minus = _is_minus(dot(sums[t, here], centred, room), 0.0, 0.0)
            _move(sums[t, here], centred, is_minus)
            here = 2 * here + is_minus
        node[example] = here


@compiled
def pair_balance(
    rows: NDArray[np.float32], ids: NDArray[np.int64], trees: PairTrees, seed: int
) -> None:
    """Send rows down their trees by the differences of pairs; in place.

    The first row of a pair waits at its node for the second; then they part.

    Args:
        rows: Shape `(num, dim)`.
        ids: Example of each row, shape `(num,)`; one that has a node already is left out.
        trees: Changed in place.
        seed: Of the walk.
    """
    lane, sums, waiting, waiting_id, node, arrival, walk = trees
    num_leaves, dim = sums.shape[1], rows.shape[1]
    depth = 1
    while 1 << depth < num_leaves:
        depth += 1
    # Of a pair one row goes down at once, and the other after all that follows from it.
    stack, stack_id = np.empty((depth + 1, dim), np.float32), np.empty(depth + 1, np.int64)
    difference, room = np.empty(dim, np.float32), np.empty(dim, np.float32)
    for r in range(len(ids)):
        if node[ids[r]]:
            continue
        arrival[ids[r]] = np.int64(walk[0])
        walk[0] += 1
        node[ids[r]] = 1
        stack[0], stack_id[0] = rows[r], ids[r]
        height = 1
        while height:
            example = stack_id[height - 1]
            here, j = node[example], lane[example]
            if here >= num_leaves:
                height -= 1
                continue
            if waiting_id[j, here] < 0:
                waiting[j, here] = stack[height - 1]
                waiting_id[j, here] = example
                height -= 1
                continue
            for i in range(dim):
                difference[i] = waiting[j, here, i] - stack[height - 1, i]
            total = sums[j % len(sums), here]
            caution, draw = 0.0, 0.0
            if walk[1] >= 0.0:
                walk[1] = max(walk[1], dot(difference, difference, room))
                caution, draw = walk[1], _uniform(seed, int(walk[0]))
            is_minus = _is_minus(dot(total, difference, room), caution, draw)
            _move(total, difference, is_minus)
            node[waiting_id[j, here]] = 2 * here + is_minus
            node[example] = 2 * here + 1 - is_minus
            stack[height], stack_id[height] = waiting[j, here], waiting_id[j, here]
            waiting_id[j, here] = -1
            height += 1


def leaf_rank(node: NDArray[np.int64], depth: int) -> NDArray[np.int64]:
    """Return the place of each leaf in the next order, -1 for an example without a node.

    Each minus turns the direction of all below it, so that neighbouring parts meet with
    the ends that they have in common: within a leaf of odd rank, who came first goes last.
    Who still waits for a partner goes on with pluses.

    Args:
        node: Where each example arrived, shape `(num_examples,)`.
        depth: Levels of the tree.
    """
    level = np.frexp(np.maximum(node, 1).astype(np.float64))[1] - 1
    leaf = np.where(node > 0, node << (depth - level), 0)
    rank = leaf - (1 << depth)
    for shift in range(1, depth):
        rank = np.where(node > 0, rank ^ ((leaf - (1 << depth)) >> shift), rank)
    return np.where(node > 0, rank, -1)
