"""Paceline keeps every worker of a distributed training job moving at the same pace."""
