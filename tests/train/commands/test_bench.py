"""The benchmark's arithmetic on steps of known length, and its command on small models."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchloom.train import cli, measure
from patchloom.train.cli import main
from patchloom.train.commands import bench
from patchloom.train.measure import Arm, Case, Spread
from patchloom.train.running.checkpoint import FORMAT
from patchloom.vision.zoo import create_model, describe

VIT, CONV = "timm:test_vit", "timm:test_resnet"  # 160 px, 0.4 and 0.5 M parameters
SMALL = Case(batch=2, size=(160, 160))


class Tiny(nn.Module):
    """A patch embedding, one attention, a head: (B 3 8 8) -> (B 5)."""

    num_classes = 5
    default_cfg = {"input_size": (3, 8, 8)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.head = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 18, bias=False), nn.Linear(6, 5)
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.stem(x).flatten(2).mT).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        return self.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))


def test_spread_is_the_median_and_the_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine that grows slower: a step of n units takes n times what the clock's pace is by then."""
    state = SimpleNamespace(pace=0.01, growth=1.0, now=0.0, order=[])

    def timed(step: float, count: int, device: str) -> float:
        state.order.append(step)
        state.pace *= state.growth
        state.now += step * count * state.pace
        return step * state.pace

    monkeypatch.setattr(measure, "timed", timed)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: state.now)
    return state


def test_a_slowing_machine_does_not_bend_the_ratio(clock: SimpleNamespace) -> None:
    clock.growth = 1.05
    rounds = measure.alternate([1.0, 2.0], repeats=20)
    assert len(rounds) == 20
    assert clock.order[:8] == [1.0, 2.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0]  # two to size the blocks, then A B, B A, A B
    assert bench.verdict(rounds)["ratio"] == pytest.approx(2.0, rel=0.01)


def test_rounds_last_as_long_as_asked(clock: SimpleNamespace) -> None:
    rounds = measure.alternate([1.0], seconds=2.0)
    assert len(rounds) == 20  # blocks of 0.1 s
    assert len(measure.alternate([1.0], seconds=0.0)) == 5


def test_the_faster_layout_is_found(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"contiguous": 1.0, "channels_last": 0.5}
    monkeypatch.setattr(measure, "step_of", lambda model, case, layout: times[layout])
    assert measure.best_layout(nn.Identity(), Case()) == (0.5, "channels_last")
    times["contiguous"] = 0.25
    assert measure.best_layout(nn.Identity(), Case()) == (0.25, "contiguous")


def test_cost_counts_fused_attention_and_what_trains() -> None:
    model = Tiny().train()
    stem, qkv, attention, head = 16 * 6 * 3 * 4, 16 * 6 * 18, 2 * 16 * 16 * 6, 6 * 5
    parameters = 6 * 12 + 6 + 6 * 18 + 6 * 5 + 5
    assert bench.cost(model, Case(batch=3)) == {
        "parameters": parameters,
        "trainable": parameters - 5,
        "macs": stem + qkv + attention + head,
    }
    assert model.training


@pytest.mark.parametrize("layout", measure.LAYOUTS)
def test_a_training_step_is_what_it_says(layout: str) -> None:
    model, twin = Tiny(), Tiny()
    twin.load_state_dict(model.state_dict())
    case = Case(batch=4, train=True)
    x, y = measure.inputs(twin, case, layout)
    assert x.is_contiguous(memory_format=measure.LAYOUTS[layout])
    measure.step_of(model, case, layout)()
    F.cross_entropy(twin(x), y).backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.grad is None
        step = 0 if theirs.grad is None else theirs.grad * 1e-4
        torch.testing.assert_close(ours, theirs - step, rtol=0, atol=1e-8)


def test_bfloat16_means_weights_in_inference_and_autocast_in_training() -> None:
    model = Tiny().eval()
    assert measure.step_of(model, Case(dtype="bfloat16"), "contiguous")().dtype == torch.bfloat16
    assert model.qkv.weight.dtype == torch.bfloat16
    model = Tiny()
    measure.step_of(model, Case(dtype="bfloat16", train=True), "contiguous")()
    assert model.qkv.weight.dtype == torch.float32


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", VIT, "--against", CONV, "--batch", "2", "--repeats", "3", "--train", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    theirs = result["against"]
    assert (result["model"], theirs["model"]) == (VIT, CONV)
    for arm in (result, theirs):
        low, high = arm["images_per_second_spread"]
        assert 0 < low <= arm["images_per_second"] <= high
        assert arm["layout"] in measure.LAYOUTS
        assert arm["parameters"] * 4 / 2**20 < arm["peak_memory_mb"] < 1000
    low, high = result["ratio_spread"]
    assert low <= result["ratio"] <= high
    assert (result["mode"], result["batch"], result["size"], result["rounds"]) == ("training step", 2, [160, 160], 3)
    assert result["circumstances"]["torch"] == torch.__version__
    assert result["circumstances"]["attention"] == "sdpa"


def test_text_names_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["bench", CONV, "--batch", "1", "--size", "96x64", "--repeats", "2", "--no-memory", "--channels-last"]
    assert main([*line, "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    for part in (
        CONV,
        "channels_last",
        "inference, batch 1, 96x64, bfloat16 weights and images, 2 rounds",
        "threads on",
    ):
        assert part in out
    assert "times its images/s" not in out


def test_a_run_of_ones_own_is_measured(tmp_path: Path) -> None:
    name = "timm:test_resnet"
    model = create_model(name, num_classes=7)
    head = {"format": FORMAT, "model": describe(model), "classes": list("abcdefg"), "preprocessing": {}, "recipe": ""}
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"patchloom": head, "state_dict": state}, tmp_path / "last.ckpt")
    built = measure.build(Arm(str(tmp_path)), Case(size=(96, 64)))
    assert built.num_classes == 7
    assert built.default_cfg["input_size"] == (3, 96, 64)
    torch.testing.assert_close(built.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match="TimmClassifier has no blocks with seams"):
        measure.build(Arm(str(tmp_path), (("tokens", "tome:r=8"),)), Case())
    with pytest.raises(ValueError, match="TimmClassifier is no model of this suite, and takes no adapter"):
        measure.build(Arm(str(tmp_path), (("adapter", "lora:r=8"),)), Case())


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(1.01, 1.2, "faster"), (0.8, 0.99, "slower"), (0.98, 1.02, "cannot")]
)
def test_the_verdict_is_what_the_quartiles_allow(low: float, high: float, verdict: str) -> None:
    assert verdict in bench.words(low, high)


@pytest.mark.slow
def test_a_module_of_ones_own_is_there_in_the_child_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_mixer_of_mine.py").write_text("open('seen', 'a').write('x')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    brought: list[str] = []
    monkeypatch.setattr(cli, "BROUGHT", brought)
    monkeypatch.setattr(measure, "BROUGHT", brought)
    cli.bring_in(["own_mixer_of_mine"])
    assert brought == ["own_mixer_of_mine"]
    assert measure.peak_memory_mb(Arm(VIT, (), "contiguous"), SMALL) > 0
    assert (tmp_path / "seen").read_text() == "xx"


@pytest.mark.slow
def test_memory_of_a_step_is_seen() -> None:
    arm, weights = Arm("timm:resnet18", (), "contiguous"), 11_689_512 * 4 / 2**20
    assert weights < measure.peak_memory_mb(arm, Case(batch=1, size=(64, 64))) < 2 * weights
    assert measure.peak_memory_mb(arm, Case(batch=1, size=(64, 64), train=True)) > 2 * weights  # as many gradients


@pytest.mark.parametrize(
    ("status", "stderr", "reason"),
    [(1, "Traceback …\nValueError: no such thing\n", "ValueError: no such thing"), (-9, "", "exit status -9")],
)
def test_memory_says_why_a_child_failed(status: int, stderr: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CompletedProcess([], status, "", stderr)
    monkeypatch.setattr(measure.subprocess, "run", lambda *args, **options: done)
    with pytest.raises(ChildProcessError, match=f"timm:test_vit: measuring its memory .* failed: {reason}"):
        measure.peak_memory_mb(Arm(VIT, (), "contiguous"), SMALL)


@pytest.mark.parametrize(
    ("line", "status", "part"),
    [
        (["--batch", "0"], 2, "'0' is not a whole number"),
        (["--size", "0x224"], 2, "'0x224' is no size: N, or HxW as in 240x320"),
        (["--dtype", "float8"], 2, "float8"),
        (["--agianst", CONV], 2, "--against"),
        (["--device", "tpu"], 1, "tpu"),
        (["--device", "cuda:99"], 1, "cuda:99"),
        (["--tokens", "tome:r=8"], 1, "tokens"),
    ],
)
def test_wrong_lines_are_one_line(line: list[str], status: int, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", VIT, *line]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert part in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_compiled_models_run(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["bench", CONV, "--batch", "1", "--size", "64", "--repeats", "2", "--compile", "--no-memory", "--json"]
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out)["compile"] is True


@pytest.mark.gpu
def test_gpu_memory_is_the_allocators(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["bench", "timm:resnet18", "--batch", "8", "--repeats", "2", "--train", "--device", "cuda", "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["circumstances"]["device"] == "cuda"
    assert 2 * 44.6 < result["peak_memory_mb"] < 2000


# ------------------------------------------------------------------------------------ tests/benchmarks/against_timm.py


@pytest.fixture(scope="module")
def against_timm() -> ModuleType:
    spec = spec_from_file_location("against_timm", Path(__file__).parents[2] / "benchmarks" / "against_timm.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_table_is_printed(
    against_timm: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(against_timm, "PAIRS", {VIT: "test_vit", CONV: "test_vit"})
    lines = tmp_path / "lines.json"
    against_timm.main(["--batch", "1", "--size", "160", "--seconds", "0", "--modes", "inference", "--out", str(lines)])
    table, summary = capsys.readouterr().out.split("\n\n")[:2]
    assert [row.split(" | ")[0] for row in table.splitlines()[2:]] == [f"| {VIT}", f"| {CONV}"]
    assert summary.startswith("geometric mean ")
    ratios = [json.loads(line)["ratio"] for line in lines.read_text().splitlines()]
    assert f"lowest {min(ratios):.3f}, of 2 cells" in summary


def test_the_table_compares_models_that_both_have(against_timm: ModuleType) -> None:
    import timm

    from patchloom.vision.zoo import list_models

    assert set(against_timm.PAIRS) <= set(list_models())
    assert set(against_timm.PAIRS.values()) <= set(timm.list_models())
