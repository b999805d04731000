"""Extremely randomized trees whose leaves keep the outcomes they saw: they predict a spread."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled

LEAF = -1
WHOLE = ("roots", "feature", "child", "stop", "outcomes")

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class _Trees(NamedTuple):
    """The arrays of a `Forest` that lead from a row to outcomes, as compiled loops take them."""

    roots: Integers
    feature: Integers
    threshold: Floats
    child: Integers
    stop: Integers
    outcomes: Integers


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """Trees as flat arrays; all that prediction needs, and plain data.

    The trees are grown as in [1], on the full sample with random thresholds, and
    read as in [2]: a row weighs every training outcome by how often both
    share a leaf, which is a predictive distribution. Leaves keep outcomes only, sorted,
    not the rows that they came from.

    Attributes:
        roots: First node of each tree.
        feature: Feature that a node splits on, or -1 for a leaf.
        threshold: Values up to it go left. Shape of `feature`.
        child: Left child, the right one follows; for a leaf, where its outcomes begin.
        stop: For a leaf, where its outcomes end.
        outcomes: Indices into `support`, leaf by leaf.
        support: The distinct outcomes, ascending.

    References:
        [1] P. Geurts, D. Ernst, L. Wehenkel, "Extremely randomized trees",
        Machine Learning 63, 2006.
        [2] N. Meinshausen, "Quantile regression forests", JMLR 7, 2006.
    """

    roots: Integers
    feature: Integers
    threshold: Floats
    child: Integers
    stop: Integers
    outcomes: Integers
    support: Floats

    @classmethod
    def fit(
        cls,
        features: NDArray[np.float64],
        outcomes: NDArray[np.float64],
        *,
        num_trees: int = 100,
        min_leaf: int = 3,
        seed: int = 0,
    ) -> Self:
        """Grow trees that split where the squared error of log outcomes falls most.

        Args:
            features: Shape `(num_rows, num_features)`, finite.
            outcomes: Positive, shape `(num_rows,)`.
            num_trees: How many trees.
            min_leaf: Fewest rows in a leaf.
            seed: Of the random thresholds.
        """
        support, code = np.unique(outcomes, return_inverse=True)
        target = np.log(outcomes)
        trees = [
            _grow(features, target, _draws(features.shape, seed, tree), min_leaf)
            for tree in range(num_trees)
        ]
        sizes = np.array([tree[0].size for tree in trees])
        roots = np.cumsum(sizes) - sizes
        feature, threshold, child, stop = (np.concatenate([t[n] for t in trees]) for n in range(4))
        # Nodes and outcomes are counted over all trees, one tree after the other.
        tree_of = np.repeat(np.arange(num_trees), sizes)
        before = np.where(feature == LEAF, tree_of * target.size, roots[tree_of])
        atoms = [_sorted_within(code[t[4]], t[2][t[0] == LEAF]) for t in trees]
        stop = stop + tree_of * target.size
        return cls(roots, feature, threshold, child + before, stop, np.concatenate(atoms), support)

    def spread(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weight of each outcome of `support`, shape `(num_rows, num_support)`, rows sum to 1."""
        weights = np.zeros((features.shape[0], self.support.size))
        trees = _Trees(*(getattr(self, name) for name in _Trees._fields))
        _collect(features, trees, weights)
        return weights / self.roots.size

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        return {name: getattr(self, name).tolist() for name in self.__slots__}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], *, num_features: int) -> Self:
        """The forest that `to_dict` wrote.

        Raises:
            ValueError: If an index points nowhere.
        """
        whole = [np.asarray(state[name], dtype=np.int64) for name in WHOLE]
        roots, feature, child, stop, outcomes = whole
        threshold = np.asarray(state["threshold"], dtype=np.float64)
        support = np.asarray(state["support"], dtype=np.float64)
        sizes = {feature.shape, threshold.shape, child.shape, stop.shape}
        leaf = feature == LEAF
        here = np.arange(feature.size)
        sound = len(sizes) == 1 and bool(
            _within(roots, feature.size)
            and _within(feature + 1, num_features + 1)
            and _within(outcomes, support.size)
            and _within(child[leaf], outcomes.size)
            and (stop[leaf] > child[leaf]).all()
            and (stop[leaf] <= outcomes.size).all()
            and (child[~leaf] > here[~leaf]).all()
            and (child[~leaf] + 1 < feature.size).all()
        )
        if not sound:
            raise ValueError("the trees are damaged: an index points nowhere; fit them again")
        return cls(roots, feature, threshold, child, stop, outcomes, support)


def _within(index: Integers, size: int) -> bool:
    return bool(((index >= 0) & (index < size)).all())


def _draws(shape: tuple[int, ...], seed: int, tree: int) -> Floats:
    return np.random.default_rng([seed, tree]).random((2 * shape[0], shape[1]))


def _sorted_within(codes: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort the outcomes inside each leaf, so that their places say nothing about rows."""
    leaf = np.searchsorted(np.sort(start), np.arange(codes.size), side="right")
    return codes[np.lexsort((codes, leaf))]


@compiled
def _grow(
    features: Floats, target: Floats, draws: Floats, min_leaf: int
) -> tuple[Integers, Floats, Integers, Integers, Integers]:
    num_rows = target.size
    order = np.arange(num_rows)
    feature = np.full(2 * num_rows, LEAF)
    threshold = np.zeros(2 * num_rows)
    child = np.zeros(2 * num_rows, dtype=np.int64)
    stop = np.zeros(2 * num_rows, dtype=np.int64)
    stop[0] = num_rows
    num_nodes, node = 1, 0
    while node < num_nodes:
        low, high = child[node], stop[node]
        best, cut = _best_split(features, target, order[low:high], draws[node], min_leaf)
        if best != LEAF:
            middle = _partition(features[:, best], cut, order[low:high]) + low
            feature[node], threshold[node], child[node] = best, cut, num_nodes
            child[num_nodes], stop[num_nodes] = low, middle
            child[num_nodes + 1], stop[num_nodes + 1] = middle, high
            num_nodes += 2
        node += 1
    return (
        feature[:num_nodes], threshold[:num_nodes], child[:num_nodes], stop[:num_nodes], order,
    )  # fmt: skip


@compiled
def _best_split(
    features: Floats, target: Floats, rows: Integers, draws: Floats, min_leaf: int
) -> tuple[int, float]:
    best, best_cut, best_gain = LEAF, 0.0, 1e-12
    if rows.size < 2 * min_leaf:
        return best, best_cut
    total = 0.0
    for row in rows:
        total += target[row]
    for feature in range(features.shape[1]):
        smallest, largest = np.inf, -np.inf
        for row in rows:
            smallest = min(smallest, features[row, feature])
            largest = max(largest, features[row, feature])
        cut = smallest + draws[feature] * (largest - smallest)
        count, left = 0, 0.0
        for row in rows:
            if features[row, feature] <= cut:
                count += 1
                left += target[row]
        other = rows.size - count
        if count < min_leaf or other < min_leaf:
            continue
        right = total - left
        gain = left * left / count + right * right / other - total * total / rows.size
        if gain > best_gain:
            best, best_cut, best_gain = feature, cut, gain
    return best, best_cut


@compiled
def _partition(column: Floats, cut: float, rows: Integers) -> int:
    count = 0
    for place in range(rows.size):
        if column[rows[place]] <= cut:
            rows[count], rows[place] = rows[place], rows[count]
            count += 1
    return count


@compiled
def _collect(features: Floats, trees: _Trees, weights: Floats) -> None:
    for row in range(features.shape[0]):
        for root in trees.roots:
            node = root
            while trees.feature[node] != LEAF:
                is_right = features[row, trees.feature[node]] > trees.threshold[node]
                node = trees.child[node] + is_right
            first, stop = trees.child[node], trees.stop[node]
            for place in range(first, stop):
                weights[row, trees.outcomes[place]] += 1.0 / (stop - first)
