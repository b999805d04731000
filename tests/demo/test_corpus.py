from pathlib import Path

import numpy as np
import pytest

from paceline.demo import _corpus
from paceline.demo._corpus import (
    MAX_BYTES,
    MIN_BYTES,
    Corpus,
    _functions_in,
    standard_library_functions,
)

SOURCE = b"""\
def short(): return 1


@decorated
def first(x):
    \"\"\"A function of some length.\"\"\"
    return x


class Home:
    async def second(self):
        def inner_with_a_long_name(y):
            return y
        return inner_with_a_long_name(self)
"""

NUMBERED = b"def function_number_%d():\n    return 'a number'\n"


def library(root: Path, monkeypatch: pytest.MonkeyPatch, **modules: bytes) -> None:
    """Let the folder `root` be the standard library."""
    for name, source in modules.items():
        (root / f"{name}.py").write_bytes(source)
    monkeypatch.setattr(_corpus.sysconfig, "get_paths", lambda: {"stdlib": str(root)})


def test_functions_of_the_real_library_keep_the_limits() -> None:
    corpus = standard_library_functions(budget_s=0.3)
    assert len(corpus) > 0
    assert corpus.sizes.min() >= MIN_BYTES
    assert corpus.sizes.max() <= MAX_BYTES
    assert corpus.offsets[0] == 0
    assert corpus.offsets[-1] == len(corpus.text)
    assert b"def " in bytes(corpus[0])


def test_a_smaller_budget_reads_a_beginning_of_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(tmp_path, monkeypatch, **{f"m{i}": NUMBERED % i for i in range(20)})
    less = standard_library_functions(budget_s=0.0)
    more = standard_library_functions(budget_s=60.0)
    assert (len(less), len(more)) == (1, 20)
    assert bytes(more.text).startswith(bytes(less.text))


def test_functions_are_cut_out_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_bytes(SOURCE)
    first, second, inner = _functions_in(path)
    assert first == b'def first(x):\n    """A function of some length."""\n    return x\n'
    assert second.startswith(b"    async def second(self):\n")
    assert second.endswith(b"return inner_with_a_long_name(self)\n")
    assert inner == b"        def inner_with_a_long_name(y):\n            return y\n"


@pytest.mark.parametrize(
    "source",
    [b"def broken(:\n    pass  # what is this\n", b"def f():\n    return '\0'\n", b"\xff\xfe"],
    ids=["syntax error", "null byte", "not text"],
)
def test_files_that_cannot_be_parsed_are_skipped(tmp_path: Path, source: bytes) -> None:
    path = tmp_path / "module.py"
    path.write_bytes(source)
    assert list(_functions_in(path)) == []
    assert list(_functions_in(tmp_path / "missing.py")) == []


def test_an_invalid_escape_is_no_reason_to_warn_or_skip(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_bytes(b'def matches_a_digit(text):\n    return "\\d" in text\n')
    assert len(list(_functions_in(path))) == 1


def test_installed_packages_are_not_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(tmp_path, monkeypatch, one=SOURCE, two=SOURCE)
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "theirs.py").write_bytes(SOURCE)
    assert len(standard_library_functions(budget_s=60.0)) == 2 * 3


def test_the_order_is_fixed_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(tmp_path, monkeypatch, **{f"m{i}": NUMBERED % i for i in range(20)})
    texts = [bytes(standard_library_functions(budget_s=60.0, seed=s).text) for s in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert sorted(texts[0].splitlines()) == sorted(texts[2].splitlines())


def test_a_machine_without_sources_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="found no Python functions under"):
        standard_library_functions(budget_s=1.0)


def test_a_corpus_comes_back_as_it_was_saved(tmp_path: Path, corpus: Corpus) -> None:
    corpus.save(tmp_path / "corpus.npz")
    again = Corpus.load(tmp_path / "corpus.npz")
    assert len(again) == len(corpus) == 131
    np.testing.assert_array_equal(again.text, corpus.text)
    np.testing.assert_array_equal(again.offsets, corpus.offsets)
    np.testing.assert_array_equal(again[7], corpus.text[corpus.offsets[7] : corpus.offsets[8]])
    assert again.sizes.tolist() == corpus.sizes.tolist()
