"""What was once answered by a traceback, or by a wait, is refused in one line."""

import json
import re
from pathlib import Path

import pytest
from _fault_reader import Reader
from _fault_readers import readers

from paceline.testing.faults import answer_of

CORPUS = Path(__file__).parent / "corpus"
# By hand: each was slow, or filled the memory.
SLOW = {
    "job": b'{"source": "measured", "layers": [{"name": "a", "forward_s": 0.001, "backward_s": '
    b'0.002, "gradient_bytes": 1e15}], "link": {"alpha_s": 0.0001, "bytes_per_s": 1e9}}',
    "manifest": b"null",
    "sizes": b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': "
    b"(1000000000000,), }" + b" " * 57 + b"\n",
}
IS_FINE = {"job"}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    found = readers(tmp_path_factory.mktemp("readers"))
    return {re.sub(r"[ ,]+", "_", reader.name): reader for reader in found}


def value_for(reader: Reader, raw: bytes) -> object:
    """Return what the fuzzer gave to the reader: a file, a text, or a state."""
    if isinstance(reader.good, str):
        return raw.decode("latin-1")
    is_file = isinstance(reader.good, bytes) or reader.name.endswith("sealed")
    return raw if is_file else json.loads(raw)


@pytest.mark.parametrize("name", sorted(path.name for path in CORPUS.iterdir()))
def test_nothing_in_the_corpus_is_unclear(known: dict[str, Reader], name: str) -> None:
    reader = known[name]
    reader.read(reader.good)  # Compiles what it needs, before time is limited.
    for path in sorted((CORPUS / name).iterdir()):
        value = value_for(reader, path.read_bytes())
        answer, error = answer_of(lambda value=value: reader.read(value))
        assert answer in ("refused", "accepted"), (path.name, error)


@pytest.mark.parametrize("name", sorted(SLOW))
def test_what_was_slow_is_quick_or_refused(known: dict[str, Reader], name: str) -> None:
    reader = known[name]
    reader.read(reader.good)
    answer, error = answer_of(lambda: reader.read(SLOW[name]))
    assert answer == ("accepted" if name in IS_FINE else "refused"), error


@pytest.mark.parametrize("order", ["shuffle", "flip-flop", "grab", "pair-balance"])
def test_an_epoch_that_no_run_reaches_is_refused(known: dict[str, Reader], order: str) -> None:
    reader = known[f"state_of_a_sampler_{order}"]
    for epoch in (10**7, 10**30):
        answer, error = answer_of(lambda epoch=epoch: reader.read({**reader.good, "epoch": epoch}))
        assert answer == "refused", error


def test_every_reader_reads_what_is_right(known: dict[str, Reader]) -> None:
    for reader in known.values():
        assert reader.read(reader.good) is not NotImplemented
