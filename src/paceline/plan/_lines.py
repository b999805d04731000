"""The lines to write for each part: what the verdict of a run and advice from a job both say."""

BALANCE_LINES = (
    "# sizes: the length of each example; docs/ragged-text.md\n"
    "batches = paceline.BalancedBatchSampler(sizes, batch_size={batch_size})\n"
    "loader = paceline.DataLoader(dataset, batch_sampler=batches)"
)
PADDED_LINES = (
    "# similar lengths together; sizes: the length of each example; docs/ragged-text.md\n"
    "cost, fixed = measure_cost(model, loss, dataset, sizes, collate_fn=collate)\n"
    "config = BalanceConfig(\n"
    "    batch_size={batch_size}, counts='free', padded=True, microbatch_cost=fixed\n"
    ")\n"
    "batches = paceline.BalancedBatchSampler(sizes, config, cost=cost)\n"
    "loader = paceline.DataLoader(\n"
    "    dataset, batch_sampler=batches, collate_fn=collate, with_info=True\n"
    ")  # the loop then needs info.loss_weight and info.is_step_end"
)
SCHEDULED_LINE = "model = paceline.ScheduledDataParallel(model, optimizer)  # docs/from-ddp.md"
BUCKET_LINE = "DistributedDataParallel(..., bucket_cap_mb={cap})"
BF16 = "compression='bf16'"
