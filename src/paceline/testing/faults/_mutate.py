"""Make malformed inputs from a good one: values swapped by extreme ones, bits flipped, text cut.

Everything is drawn from the generator that is passed in, so a seed and a number name an input.
"""

import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

DEPTH = 3_000
# As JSON writes them, and as no JSON holds them: what numbers and names must not be.
TEXTS = (
    "null", "true", "-1", "0", "1", "-0.0", "0.5", "1e-320", "1e300", "1e400", "-1e400", "NaN",
    "Infinity", "-Infinity", "2147483648", "9007199254740993", "9223372036854775808", "1e12",
    "1" + "0" * 12, "1" + "0" * 30, "1" + "0" * 400, "9" * 5_000, '""', '"\\u0000"', '"\\ud800"',
    '"x"', "[]", "{}", "[[]]", '"' + "x" * 3_000 + '"', "[" * DEPTH + "]" * DEPTH,
    '{"a":' * DEPTH + "1" + "}" * DEPTH, "[" * 200_000,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, 2**64, 10**12, 10**30, 10**400, -(10**400), 0.5,
    -0.0, 1e300, math.inf, -math.inf, math.nan, "", "\0", "x", "9" * 5_000, (), b"x", [], {}, [[]],
    {"a": 1},
)  # fmt: skip
_TOKEN = re.compile(rb"[A-Za-z0-9_.+-]+")
_MARK = "\x01"


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with one to three faults in it: a file as damage or a stranger leaves it.

    What is JSON gets values swapped by extreme ones, deep nesting, keys left out; any file gets
    words and numbers swapped by extreme ones, bits flipped, parts cut out, doubled or moved.

    Examples:
        >>> mutated_bytes(b'{"size": 3}', random.Random(1))
        b'{ze": 3}'
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice((_json, _json, _json, _token, _token, *_BYTES))(data, rng)
    return data


def mutated_state(state: Any, rng: random.Random) -> Any:
    """Return a copy of plain nested values with one of them swapped, left out or doubled."""
    value = nested() if rng.random() < 0.05 else rng.choice(VALUES)
    places = _places(state)
    is_whole = not places or rng.random() < 0.03
    return value if is_whole else _with(state, rng.choice(places), _fault(rng, value))


def nested(depth: int = 100_000) -> list[Any]:
    """Return lists in lists, deeper than any recursion goes."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _json(data: bytes, rng: random.Random) -> bytes:
    try:
        found = json.loads(data)
        places = _places(found)
        changed = _with(found, rng.choice(places), _fault(rng, _MARK))
        text = json.dumps(changed, separators=(", ", ": "))
    except (ValueError, RecursionError, IndexError):
        return _token(data, rng)
    return text.replace(json.dumps(_MARK), rng.choice(TEXTS)).encode()


def _token(data: bytes, rng: random.Random) -> bytes:
    """Swap one word or number by an extreme one: in CSV, in the header of an array, in JSON."""
    found = [match.span() for match in _TOKEN.finditer(data[:100_000])]
    if not found:
        return _flip(data, rng)
    # Headers come first, and are short beside the data.
    begin, end = rng.choice(found[:40] if rng.random() < 0.5 else found)
    return data[:begin] + rng.choice(TEXTS).strip('"').encode() + data[end:]


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return bytes([rng.randrange(256)])
    at = rng.randrange(min(len(data), rng.choice((64, len(data)))))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _lengthen(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice((1, 8, 500)))


def _drop(data: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:begin] + data[end:]


def _double(data: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[begin:end] + data[end:]


def _junk(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randrange(1, 20)) + data[at:]


_BYTES = (_flip, _flip, _cut, _lengthen, _drop, _double, _junk)


def _fault(rng: random.Random, value: Any) -> Callable[[Any, Any], None]:
    """Return what to do at one place of a container."""

    def swap(container: Any, key: Any) -> None:
        container[key] = value

    def leave_out(container: Any, key: Any) -> None:
        del container[key]

    def double(container: Any, key: Any) -> None:
        if isinstance(container, list):
            container.insert(key, container[key])
        else:
            container[f"{key} "] = container[key]

    return rng.choice((swap, swap, swap, swap, leave_out, double))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:50])
    found = []
    for key, part in items:
        found += [(*path, key), *_places(part, (*path, key))]
    return found


def _with(value: Any, path: Sequence[Any], fault: Callable[[Any, Any], None]) -> Any:
    """Return a copy of `value` with `fault` done at `path`."""
    made: Any = dict(value) if isinstance(value, Mapping) else list(value)
    if len(path) == 1:
        fault(made, path[0])
    else:
        made[path[0]] = _with(value[path[0]], path[1:], fault)
    return made
