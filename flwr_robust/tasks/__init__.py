"""What is learnt: data sets, models, and the training steps of a client."""

from flwr_robust.tasks.data import TASKS, DataWarning, Task, content_digest, load_task, task_of
from flwr_robust.tasks.grouped import Grouped
from flwr_robust.tasks.hugging_face import task_from_dataset
from flwr_robust.tasks.learner import Learner, descend
from flwr_robust.tasks.metrics import METRICS, Metric, metric_named
from flwr_robust.tasks.models import MODELS, build_model, check_model_name, depends_on_data, model_outline, model_sketch
from flwr_robust.tasks.objective import LOSSES, Objective
from flwr_robust.tasks.split import Split, split_arrays
from flwr_robust.tasks.tail import Tail
from flwr_robust.tasks.targets import TARGETS

__all__ = [
    "LOSSES",
    "METRICS",
    "MODELS",
    "TARGETS",
    "TASKS",
    "DataWarning",
    "Grouped",
    "Learner",
    "Metric",
    "Objective",
    "Split",
    "Tail",
    "Task",
    "build_model",
    "check_model_name",
    "content_digest",
    "depends_on_data",
    "descend",
    "load_task",
    "metric_named",
    "model_outline",
    "model_sketch",
    "split_arrays",
    "task_from_dataset",
    "task_of",
]
