"""What is learnt: data sets, models, and the training steps of a client."""

from flwr_robust.tasks.data import TASKS, Task, load_task
from flwr_robust.tasks.grouped import Grouped
from flwr_robust.tasks.learner import Learner, descend
from flwr_robust.tasks.models import MODELS, build_model
from flwr_robust.tasks.split import Split, split_arrays
from flwr_robust.tasks.tail import Tail

__all__ = [
    "MODELS",
    "TASKS",
    "Grouped",
    "Learner",
    "Split",
    "Tail",
    "Task",
    "build_model",
    "descend",
    "load_task",
    "split_arrays",
]
