"""Records a training script that knows nothing of it."""
