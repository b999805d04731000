"""The GraB family: orders that balance the rows of one epoch for the next."""

from paceline.order._learned import LearnedOrder
from paceline.order._policy import OrderPolicy
from paceline.order._signs import Lanes, MeanSigns, PairSigns, SignRule


def mean_balance(num_examples: int, *, seed: int = 0) -> OrderPolicy:
    """Return the order `"grab"`: one running sum of all rows, less their last mean.

    References:
        Y. Lu, W. Guo, C. De Sa, "GraB: finding provably better data permutations than
        random reshuffling", NeurIPS 2022, algorithm 4, with the greedy sign of algorithm 5.
    """
    return _by_means("grab", num_examples, Lanes(), seed)


def pair_balance(num_examples: int, *, seed: int = 0) -> OrderPolicy:
    """Return the order `"pair-balance"`: one running sum of differences of consecutive rows.

    It is `coordinated_pair_balance` on one worker.
    """
    return _by_pairs("pair-balance", num_examples, Lanes(), seed)


def independent_mean_balance(num_examples: int, num_workers: int, *, seed: int = 0) -> OrderPolicy:
    """Return the order `"i-b"`: GraB on each worker's examples by themselves.

    Args:
        num_examples: Number of examples of the dataset.
        num_workers: Workers that the order is made for; a loaded state brings its own.
        seed: Of the first shuffle.
    """
    return _by_means("i-b", num_examples, Lanes(num_workers, is_independent=True), seed)


def independent_pair_balance(num_examples: int, num_workers: int, *, seed: int = 0) -> OrderPolicy:
    """Return the order `"i-pb"`: pair balance on each worker's examples by themselves.

    Args:
        num_examples: Number of examples of the dataset.
        num_workers: Workers that the order is made for; a loaded state brings its own.
        seed: Of the first shuffle.
    """
    return _by_pairs("i-pb", num_examples, Lanes(num_workers, is_independent=True), seed)


def coordinated_pair_balance(num_examples: int, num_workers: int, *, seed: int = 0) -> OrderPolicy:
    """Return D-GraB, also called CD-GraB: pairs per worker, one running sum over all workers.

    Where we differ from its paper: odd counts and workers of unequal share are fine, and a
    position in the global batch stands for a worker, whoever computes it.

    Args:
        num_examples: Number of examples of the dataset.
        num_workers: Workers that the order is made for; a loaded state brings its own.
        seed: Of the first shuffle.

    Examples:
        >>> order = coordinated_pair_balance(4, num_workers=2)
        >>> first = order.order(epoch=0)
        >>> order.observe(first, [[1.0], [2.0], [0.0], [1.0]])
        >>> order.end_epoch()
        >>> order.order(epoch=1).tolist() == first[[0, 3, 2, 1]].tolist()
        True

    References:
        A. F. Cooper, W. Guo, K. Pham, T. Yuan, C. Ruan, Y. Lu, C. De Sa, "Coordinating
        distributed example orders for provably accelerated training", NeurIPS 2023,
        algorithm 2.
    """
    return _by_pairs("d-grab", num_examples, Lanes(num_workers), seed)


def recursive_mean_balance(num_examples: int, *, depth: int = 5, seed: int = 0) -> OrderPolicy:
    """Return GraB that balances both halves again, and again, within one pass.

    Takes `depth` times GraB's time and `2**depth` running sums. Where we differ from the
    paper's nested rounds: there one of the halves is kept, here all of them make up the order.

    References:
        R. Dwivedi, L. Mackey, "Kernel thinning", COLT 2021.
    """
    return _by_means("recursive-mean-balance", num_examples, Lanes(depth=depth), seed)


def recursive_pair_balance(num_examples: int, *, depth: int = 5, seed: int = 0) -> OrderPolicy:
    """Return pair balance that balances both halves again, and again, within one pass.

    A level has half as many pairs per node as the one above. Takes up to `depth` times the
    time of pair balance, `2**depth` running sums and as many rows that wait.
    Source: as `recursive_mean_balance`.
    """
    return _by_pairs("recursive-pair-balance", num_examples, Lanes(depth=depth), seed)


def self_balancing_walk(num_examples: int, *, seed: int = 0) -> OrderPolicy:
    """Return pair balance with a random sign, the likelier the more it shortens the sum.

    Where we differ from the paper: the walk is over differences of pairs; lengths are
    relative to the longest so far; and its constant, there 30 log(n dim), is 1, with signs
    that are certain where the rule would leave [0, 1] and the walk there fails.

    References:
        R. Alweiss, Y. Liu, M. Sawhney, "Discrepancy minimization via a self-balancing walk",
        STOC 2021.
    """
    rule = SignRule(PairSigns(seed, is_random=True), Lanes())
    return LearnedOrder("self-balancing-walk", num_examples, rule, seed=seed)


def _by_means(name: str, num_examples: int, lanes: Lanes, seed: int) -> OrderPolicy:
    return LearnedOrder(name, num_examples, SignRule(MeanSigns(), lanes), seed=seed)


def _by_pairs(name: str, num_examples: int, lanes: Lanes, seed: int) -> OrderPolicy:
    return LearnedOrder(name, num_examples, SignRule(PairSigns(seed), lanes), seed=seed)
