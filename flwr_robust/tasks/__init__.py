"""What is learnt: data sets, models, and the training steps of a client."""

from flwr_robust.tasks.data import TASKS, Task, load_task
from flwr_robust.tasks.learner import Learner
from flwr_robust.tasks.models import MODELS, build_model

__all__ = ["MODELS", "TASKS", "Learner", "Task", "build_model", "load_task"]
