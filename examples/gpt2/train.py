"""Train GPT-2 on one process or on many, with or without Paceline.

    python prepare.py
    python train.py
    torchrun --nproc_per_node=2 train.py --parallel scheduled --steps 50

The losses depend on the flags that `Options.fixed` lists, and on no other: not on the number of
ranks, nor on how gradients travel. `docs/gpt2.md` walks through it.
"""

import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from checkpoint import checkpoint_of
from data import Corpus, DocumentFeed, Feed, PackedFeed, Share, documents, packed
from loop import Run
from model import GPT2, parameter_groups
from options import Options, read_options
from parallel import REPLICAS, World, joined_world, split_gradients
from progress import Progress, peak_flops
from validate import Validation

from paceline.errors import CheckpointError

BETAS = (0.9, 0.95)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    with ExitStack() as stack:
        try:
            options = read_options(argv)
            world = stack.enter_context(joined_world(options))
            job = Job(options, world)
        except (ValueError, CheckpointError) as error:
            print(f"train.py: {error}", file=sys.stderr)
            return 2
        job.train()
    return 0


class Job:
    """All that a run needs, made and checked before anything is trained.

    Raises:
        ValueError: If options, shards and checkpoints do not fit together.
        CheckpointError: If there are checkpoints and none is whole.
    """

    def __init__(self, options: Options, world: World) -> None:
        corpus = Corpus(options.data, "train")
        self._options, self._world = options, world
        self._feed = new_feed(options, world, corpus)
        self._validation = Validation(Corpus(options.data, "validation"), options, world)
        self._model = new_model(options, corpus.manifest.vocab_size).to(world.device)
        self._optimizer = torch.optim.AdamW(
            parameter_groups(self._model, options.weight_decay),
            lr=options.learning_rate,
            betas=BETAS,
        )
        fixed = options.fixed(corpus.manifest.digest)
        self._checkpoint = checkpoint_of(
            options.out / "checkpoints", fixed, self._model, self._optimizer, self._feed
        )
        self._num_done = self._begin()

    def _begin(self) -> int:
        """Load the newest checkpoint, as `--resume` says; return the steps that are done.

        To go on unasked is safe: a checkpoint of other settings is refused, and one of the same
        leads to the losses of a run that was never stopped. So a launcher may start all again.
        """
        newest, mode = self._checkpoint.latest(), self._options.resume
        if mode == "never" and newest is not None:
            raise ValueError(
                f"{newest} is a checkpoint of an earlier run; pass --resume to go on from it, or "
                "another --out"
            )
        if mode == "always" and newest is None:
            raise ValueError(f"there is no checkpoint in {self._options.out} to --resume from")
        return self._checkpoint.resume()

    def train(self) -> None:
        """Train to the last step, or until SIGTERM; leave a checkpoint, and say what was chosen."""
        options, world = self._options, self._world
        options.out.mkdir(parents=True, exist_ok=True)
        progress = Progress(options, world, self._num_done, peak_flops(options, world.device))
        with split_gradients(self._model, options.deferred) as split:
            # Wrapped after loading, so that all ranks begin with what was loaded.
            replica = REPLICAS[options.parallel](self._model, self._optimizer)
            progress.say(
                f"{replica.name}: {world.num_ranks} rank(s) on {world.device.type}, step "
                f"{self._num_done} of {options.steps} is done"
            )
            run = Run(options, world, self._model, self._optimizer, replica, self._feed)
            with self._checkpoint as checkpoint, checkpoint.on_signal(signal.SIGTERM):
                run.train(self._num_done, progress, self._validation, checkpoint)
                checkpoint.flush()
            progress.say(f"{replica.name}: {replica.explain()}")
            if split is not None:
                progress.say(f"backward pass: {split.explain()}")
            replica.close()


def new_model(options: Options, vocab_size: int) -> GPT2:
    """Return the model with its initial weights, which depend on the seed alone."""
    return GPT2(options.shape, vocab_size=vocab_size, context=options.context, seed=options.seed)


def new_feed(options: Options, world: World, corpus: Corpus) -> Feed:
    """Return this rank's data."""
    share = Share(
        batch_size=options.batch_size,
        num_microbatches=options.num_microbatches(world.num_ranks),
        rank=world.rank,
        num_ranks=world.num_ranks,
        seed=options.seed,
    )
    if not options.documents:
        return PackedFeed(packed(corpus, options.context), share)
    return DocumentFeed(
        documents(corpus, options.context),
        share,
        width=options.shape.width,
        balanced=options.balanced,
    )


if __name__ == "__main__":
    sys.exit(main())
