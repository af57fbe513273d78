"""Training: the loop, and around it evaluation, checkpoints, recipes, a run's folder, and what happens at a stop."""

from minnl.training.evaluation import evaluate, evaluate_views
from minnl.training.loop import Trainer
from minnl.training.precise import precise_batch_norm

__all__ = ["Trainer", "evaluate", "evaluate_views", "precise_batch_norm"]
