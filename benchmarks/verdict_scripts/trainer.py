"""Hugging Face's Trainer with a small BERT, which wraps the model and the loader by itself."""

import tempfile
from typing import Any

import torch
from planting import NUM_CLASSES, VOCABULARY, Batches, flags, slow_down, slow_wire
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

WIDTH, LENGTH, BATCH_SIZE = 128, 96, 12


class PlantedTrainer(Trainer):  # type: ignore[misc]
    """The Trainer, whose DistributedDataParallel gets the slow wire when it is there."""

    plants: list[str]
    is_planted = False

    def training_step(self, model: Any, *args: Any, **keywords: Any) -> torch.Tensor:
        """Run a step; before the first one, plant what needs the wrapped model."""
        if not self.is_planted:
            slow_wire(model, self.plants)
            self.is_planted = True
        loss: torch.Tensor = super().training_step(model, *args, **keywords)
        return loss


def main() -> None:
    options = flags()
    torch.manual_seed(options.seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        num_labels=NUM_CLASSES,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            ddp_backend="gloo",
            per_device_train_batch_size=1,
            max_steps=options.steps,
            seed=options.seed,
            logging_steps=20,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        model = BertForSequenceClassification(config)
        trainer = PlantedTrainer(
            model=model,
            args=arguments,
            train_dataset=Batches(options.plant, options.seed, LENGTH, BATCH_SIZE),
            data_collator=lambda batches: batches[0],
        )
        trainer.plants = options.plant
        slow_down(model, options.plant)
        trainer.train()


if __name__ == "__main__":
    main()
