"""Logistic regression on sentence embeddings, in an order that balances gradients.

    torchrun --nproc_per_node=4 examples/ordering/logistic_regression.py --sorter D-GraB \
        --grad_acc 2 --backend gloo [--tsv train.tsv]

`--tsv` names a GLUE-like file: a header, then a line for each sentence, with its class in
the column `label` and its text in `sentence` (or `--text`). The embedding is a hashed bag of
words (scikit-learn's HashingVectorizer), which needs no download. Without a file, sentences
are the lines of the standard library's source, and the class is whether a line is a comment.
"""

import argparse
import csv
import sysconfig
from pathlib import Path

import torch
from _training import parser, run
from torch import Tensor, nn
from torch.nn import functional


def read_tsv(path: Path, text: str, label: str) -> tuple[list[str], list[str]]:
    """Return the sentences and their classes."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or text not in rows[0] or label not in rows[0]:
        found = ", ".join(rows[0]) if rows else "nothing"
        raise ValueError(f"{path} needs the columns {text} and {label}; found {found}")
    return [row[text] for row in rows], [row[label] for row in rows]


def built_in(num: int) -> tuple[list[str], list[str]]:
    """Return lines of the standard library's source, and whether each is a comment."""
    root = Path(sysconfig.get_paths()["stdlib"])
    lines = [
        line.strip()
        for path in sorted(root.glob("*.py"))[:60]
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    comments = [line for line in lines if line.startswith("# ") and len(line) > 20][: num // 2]
    code = [line for line in lines if line and not line.startswith("#")][: num - len(comments)]
    return [line.lstrip("# ") for line in comments + code], ["comment"] * len(comments) + [
        "code"
    ] * len(code)


def embedded(sentences: list[str], width: int) -> Tensor:
    """Return hashed bags of words, each of length one."""
    from sklearn.feature_extraction.text import HashingVectorizer

    bags = HashingVectorizer(n_features=width).transform(sentences)
    return torch.from_numpy(bags.toarray()).float()


def main(arguments: list[str] | None = None) -> list[float]:
    """Read, embed, train."""
    flags = parser("Logistic regression on sentence embeddings")
    flags.add_argument("--tsv", type=Path, help="a GLUE-like file")
    flags.add_argument("--text", default="sentence", help="its column with the text")
    flags.add_argument("--label", default="label", help="its column with the class")
    flags.add_argument("--width", type=int, default=256, help="columns of an embedding")
    flags.add_argument("--num_examples", type=int, default=1024, help="built-in lines to use")
    options: argparse.Namespace = flags.parse_args(arguments)
    sentences, names = (
        read_tsv(options.tsv, options.text, options.label)
        if options.tsv
        else built_in(options.num_examples)
    )
    classes = {name: index for index, name in enumerate(sorted(set(names)))}
    torch.manual_seed(options.seed)
    model = nn.Linear(options.width, len(classes))
    label = torch.tensor([classes[name] for name in names])
    return run(options, model, functional.cross_entropy, embedded(sentences, options.width), label)


if __name__ == "__main__":
    main()
