"""Time and peak memory of one step of a model, made to be compared on a machine that others use too.

Times: short blocks of the steps alternate in one process (A B, B A, A B, ...), so that whatever slows the machine for a
while slows both; a ratio is taken within each round, and medians with quartiles are reported, never means.
Memory: the step runs in a child process of its own, whose high-water mark is set back once its libraries are loaded.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cli import BROUGHT, bring_in

Step = Callable[[], object]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BLOCK = 0.1  # seconds of one step's turn: long against the clock's jitter, short against the neighbours' jobs


@dataclass(frozen=True)
class Case:
    """What is measured, but for the model. `train`: forward, cross-entropy, backward, SGD step, gradients to None."""

    batch: int = 8
    size: tuple[int, int] | None = None  # H, W; None: the first model's own
    dtype: str = "float32"
    train: bool = False
    compile: bool = False
    device: str = "cpu"
    threads: int | None = None

    @property
    def precision(self) -> str:
        """A bfloat16 inference has bfloat16 weights, a bfloat16 training step float32 weights under autocast."""
        if self.dtype == "float32":
            return "float32"
        return f"{self.dtype} autocast" if self.train else f"{self.dtype} weights and images"


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a model's name, what it is built with, and its memory layout (None: the faster one)."""

    name: str
    options: tuple[tuple[str, str], ...] = ()  # tokens, adapter
    layout: str | None = None
    fold: bool = False  # its constants folded into its weights first


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high)


def build(arm: Arm, case: Case) -> nn.Module:
    """The arm's model at the case's size: a name's with fresh weights, a checkpoint's with its own."""
    from timm.layers import set_fused_attn

    from ..vision.adapters.files import put_on, settings_of
    from ..vision.plugins.words import retoken
    from ..vision.zoo import create_model
    from .running.checkpoint import find, load_model

    set_fused_attn(True)
    torch.manual_seed(0)
    options: dict[str, Any] = dict(arm.options)
    if "adapter" in options:  # how fast a saved one is depends on its settings alone
        options["adapter"] = settings_of(options["adapter"])
    if find(arm.name) is None:
        model = create_model(arm.name, img_size=case.size, **options)
    else:
        model, _, _ = load_model(arm.name)
        if "tokens" in options:
            retoken(model, options["tokens"])
        if "adapter" in options:
            put_on(model, options["adapter"])
        if case.size is not None:
            model.set_input_size(case.size)
    if arm.fold:
        if not hasattr(model, "fold"):
            raise ValueError(f"--fold is for models of this suite; {arm.name} comes from timm as it is")
        if case.train:
            raise ValueError("--fold is for inference: a folded model has no norms left to train")
        model = model.fold()
    model.to(case.device)
    return model.train() if case.train else model.eval()


def inputs(model: nn.Module, case: Case, layout: str) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) in the layout, and classes (B,)."""
    channels, *size = model.default_cfg["input_size"]
    x = torch.randn(case.batch, channels, *(case.size or size), generator=torch.Generator().manual_seed(0))
    y = torch.arange(case.batch) % model.num_classes
    return x.to(case.device, memory_format=LAYOUTS[layout]), y.to(case.device)


def step_of(model: nn.Module, case: Case, layout: str) -> Step:
    """The step that is measured; moves the model into the layout."""
    model.to(memory_format=LAYOUTS[layout])
    x, y = inputs(model, case, layout)
    half = None if case.dtype == "float32" else getattr(torch, case.dtype)
    if half is not None and not case.train:
        model.to(half)
        x = x.to(half)
    forward = torch.compile(model) if case.compile else model
    return training_step(model, forward, x, y, half) if case.train else inference(forward, x)


def inference(forward: Callable[[Tensor], Tensor], x: Tensor) -> Step:
    def step() -> Tensor:
        with torch.inference_mode():
            return forward(x)

    return step


def training_step(
    model: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, half: torch.dtype | None
) -> Step:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        with torch.autocast(x.device.type, dtype=half, enabled=half is not None):
            loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(step: Step, count: int, device: str) -> float:
    """Seconds a call, over `count` calls."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / count


def alternate(
    steps: Sequence[Step], device: str = "cpu", *, seconds: float = 10.0, repeats: int | None = None
) -> list[tuple[float, ...]]:
    """Rounds of seconds a call, one number a step: `repeats` of them where given, else for `seconds` and at least 5.
    The order turns round with every round. The steps must be warm."""
    counts = [max(1, min(1000, round(BLOCK / timed(step, 1, device)))) for step in steps]
    rounds: list[tuple[float, ...]] = []
    start = time.perf_counter()
    while len(rounds) < repeats if repeats else len(rounds) < 5 or time.perf_counter() - start < seconds:
        order = range(len(steps)) if len(rounds) % 2 == 0 else reversed(range(len(steps)))
        times = {i: timed(steps[i], counts[i], device) for i in order}
        rounds.append(tuple(times[i] for i in range(len(steps))))
    return rounds


def warm(step: Step, device: str) -> None:
    """Runs the step until compilers, caches and allocators have settled: three times, or once where it is long."""
    if timed(step, 1, device) < 1:
        timed(step, 2, device)


def best_layout(model: nn.Module, case: Case) -> tuple[Step, str]:
    """The warm step in the faster of the two layouts, by the best of a few alternating blocks, and its name."""
    times: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    while len(times["contiguous"]) < (3 if max(map(sum, times.values())) > 1 else 5):
        for name in LAYOUTS:
            step = step_of(model, case, name)
            warm(step, case.device)
            count = max(1, round(BLOCK / timed(step, 1, case.device)))
            times[name].append(timed(step, count, case.device))
    layout = min(times, key=lambda name: min(times[name]))  # noise only adds, and here nothing is paired
    step = step_of(model, case, layout)
    warm(step, case.device)
    return step, layout


def peak_memory_mb(arm: Arm, case: Case) -> float:
    """MiB that building the arm's model and three of its steps add at most, in a child process: resident memory on a
    CPU, what torch's allocator held on a GPU. The arm's layout must be known."""
    spec = json.dumps({"arm": asdict(arm), "case": asdict(case), "modules": BROUGHT})
    return in_child(arm.name, "-m", __spec__.name, spec)


def in_child(what: str, *arguments: str) -> float:
    """The `peak_memory_mb` of `what` that a Python process of its own with these arguments prints."""
    child = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        raise ChildProcessError(f"{what}: measuring its memory in a child process failed: {last}")
    return float(json.loads(child.stdout)["peak_memory_mb"])


def child(spec: dict[str, Any]) -> float:
    """What `peak_memory_mb` runs in its child process."""
    bring_in(spec["modules"])
    arm = Arm(**{**spec["arm"], "options": tuple(map(tuple, spec["arm"]["options"]))})
    case = replace(Case(**spec["case"]), size=tuple(spec["case"]["size"]))
    if case.threads:
        torch.set_num_threads(case.threads)
    if case.device != "cpu":
        torch.cuda.reset_peak_memory_stats(case.device)
    load_libraries(case)
    before = resident_mb(peak=False)
    run(arm, case, times=3)
    if case.device != "cpu":
        return torch.cuda.max_memory_allocated(case.device) / 2**20
    return resident_mb(peak=True) - before


def load_libraries(case: Case) -> None:
    """Loads what either arm would load: the model library, and torch's kernels by one small network's step."""
    import timm  # noqa: F401

    from ..vision import zoo  # noqa: F401

    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Linear(4, 8), nn.LayerNorm(8))
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    if sys.platform == "linux":
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # sets VmHWM back to VmRSS


def run(arm: Arm, case: Case, times: int) -> None:
    step = step_of(build(arm, case), case, arm.layout or "contiguous")
    for _ in range(times):
        step()


def resident_mb(*, peak: bool) -> float:
    """Resident memory of this process in MiB, now or at most so far (on Linux: since `load_libraries`)."""
    if sys.platform == "linux":
        key = "VmHWM:" if peak else "VmRSS:"
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def circumstances(case: Case) -> dict[str, Any]:
    """Where and how it was measured."""
    import timm

    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "device": case.device,
        "processor": processor(case.device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "attention": attention(case),
    }


def attention(case: Case) -> str:
    """The back end that our models' attention takes by itself."""
    from ..kernels.attend import automatic

    return "sdpa" if case.device == "cpu" else automatic(torch.device(case.device), getattr(torch, case.dtype))


def processor(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    print(json.dumps({"peak_memory_mb": child(json.loads(sys.argv[1]))}))
