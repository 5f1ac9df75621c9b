"""Downstream tasks, one a file, and the table of them."""

from __future__ import annotations

from nas_jax.methods import TASK_METHODS
from nas_jax.tasks.grounding import GroundingTask
from nas_jax.tasks.nlvr2 import Nlvr2Task
from nas_jax.tasks.retrieval import RetrievalNasTask, RetrievalTask
from nas_jax.tasks.snli_ve import SnliVeTask
from nas_jax.tasks.task import Task
from nas_jax.tasks.text_assignment import TextAssignmentTask
from nas_jax.tasks.vqa import VqaTask

TASKS: dict[str, Task] = {
    "grounding": GroundingTask(),
    "nlvr2": Nlvr2Task(),
    "nlvr2_ta": TextAssignmentTask(),
    "retrieval": RetrievalTask(),
    "retrieval_nas": RetrievalNasTask(),
    "snli_ve": SnliVeTask(),
    "vqa": VqaTask(),
}
TASK_METHODS.update({name: task.method for name, task in TASKS.items() if task.method})
PAIRS = Task()


def task_of(method_name: str) -> Task:
    """The task of a run; that of pretraining for a method that is no task's."""
    return TASKS.get(method_name, PAIRS)
