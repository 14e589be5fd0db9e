"""Tasks that share an adapter: one task a batch, chosen before it runs.

    adapt(model, HyperFormer(tasks=("fruit", "birds")))
    choose(model, "birds")  # and the next batches are birds

`Tokens.task` says which, from block to block, so that what gradient checkpointing computes again is what it was, even
where another task has been chosen meanwhile. What belongs to other tasks gets no gradient from a batch, which
DistributedDataParallel has to be told (`find_unused_parameters`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

from torch import Tensor, nn

from ..backbone import Backbone
from ..tokens import Tokens
from . import AdapterError, Put

TASKS = ("default",)
M = TypeVar("M", bound=nn.Module)


def check_settings(adapter: Any) -> None:
    """Tasks have names of their own, and what is counted is at least one."""
    tasks = adapter.tasks
    if isinstance(tasks, str) or not tasks or len(set(tasks)) < len(tasks) or not all(tasks):
        raise ValueError(f"tasks={tasks!r}: a tuple of one name or more is wanted, each of them once")
    if any(set("+,") & set(name) for name in tasks):
        raise ValueError(f"tasks={tasks!r}: names have no + or , in them, which stand between names in words")
    for f in fields(adapter):
        value = getattr(adapter, f.name)
        if f.type is int and value < 1:
            raise ValueError(f"{f.name}={value}: it takes at least 1")


class Tasks(nn.Module):
    """Tokens -> Tokens that are for the task `chosen`. What several layers of an adapter share, if anything, is
    registered here, once, and they refer to it."""

    def __init__(self, names: Sequence[str], shared: nn.Module | None = None):
        super().__init__()
        self.names, self.chosen, self.shared = tuple(names), names[0], shared

    def forward(self, t: Tokens) -> Tokens:
        return replace(t, task=self.chosen)

    def extra_repr(self) -> str:
        return f"{', '.join(self.names)}; {self.chosen} is chosen"


class ForTask(nn.Module):
    """A layer that knows which task the tokens are for."""

    def __init__(self, tasks: Sequence[str]):
        super().__init__()
        self.tasks = tuple(tasks)

    def index(self, t: Tokens) -> int:
        """Where the tokens' task stands among those of the adapter."""
        assert t.task in self.tasks, f"tokens are for the task {t.task!r}, of {self.tasks}"
        return self.tasks.index(t.task)


def marks(model: nn.Module, tasks: Sequence[str], shared: nn.Module | None = None) -> Put:
    """The `Tasks` of this adapter, where the model or its backbone wants them."""
    if "tasks" in getattr(model, "seams", ()):
        return Put("", "tasks", Tasks(tasks, shared))
    paths = [name for name, m in model.named_modules() if isinstance(m, Backbone)]
    if len(paths) != 1:
        raise AdapterError(f"{type(model).__name__} has {len(paths)} backbones; an adapter with tasks takes one")
    return Put(paths[0], "tasks", Tasks(tasks, shared))


# ------------------------------------------------------------------------------------------------------------ choosing


def marked(model: nn.Module) -> Tasks:
    """The tasks of the adapter that is on."""
    found = [m for m in model.modules() if isinstance(m, Tasks)]
    if not found:
        raise AdapterError(f"no adapter of {type(model).__name__} that is on knows tasks; hyperformer, say, does")
    return found[0]


def tasks_of(model: nn.Module) -> tuple[str, ...]:
    """The tasks of the adapter that is on."""
    return marked(model).names


def chosen(model: nn.Module) -> str:
    """The task that the next batch is for."""
    return marked(model).chosen


def choose(model: nn.Module, task: str) -> None:
    """From now on batches are for `task`; the first of the adapter's to begin with."""
    tasks = marked(model)
    if task not in tasks.names:
        raise AdapterError(f"the adapter has no task {task!r}; it has {', '.join(tasks.names)}")
    tasks.chosen = task


@contextmanager
def working_on(model: M, task: str) -> Iterator[M]:
    """The model with this task chosen, for as long as the block lasts."""
    before = chosen(model)
    choose(model, task)
    try:
        yield model
    finally:
        choose(model, before)


class PerTask(nn.Module):
    """image -> {task: heads[task](what the model gives for it)}: one adapted trunk, and for each task a head of any
    kind on a pyramid's maps, or on the features of a classifier without a head of its own (num_classes=0)."""

    def __init__(self, model: nn.Module, heads: Mapping[str, nn.Module]):
        super().__init__()
        if missing := set(tasks_of(model)) ^ set(heads):
            raise ValueError(
                f"heads for {', '.join(heads) or 'nothing'}, where the adapter has the tasks "
                f"{', '.join(tasks_of(model))}: {', '.join(sorted(missing))} has no other half"
            )
        self.model, self.names = model, tasks_of(model)
        self.heads = nn.ModuleList([heads[name] for name in self.names])

    def forward(self, image: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Any]:
        """For all tasks, or for `tasks` only: the trunk runs once for each."""
        out: dict[str, Any] = {}
        for name in self.names if tasks is None else tasks:
            with working_on(self.model, name):
                out[name] = self.heads[self.names.index(name)](self.model(image))
        return out
