import os
import signal
import subprocess
import sys
import time
import types

import pytest
from fit_parts import patchloom

from patchloom import __version__
from patchloom.train import cli
from patchloom.train.running import recipes

HEAVY = ("torch", "lightning", "timm", "transformers", "gradio", "matplotlib", "numpy")


def fake(monkeypatch, run, **extra):
    """Makes `bench` a command with one option that does `run`."""
    module = types.ModuleType("patchloom.train.commands.bench")
    module.add_arguments = lambda parser: parser.add_argument("--against", help="")
    module.run = run
    vars(module).update(extra)
    monkeypatch.setitem(sys.modules, "patchloom.train.commands.bench", module)


def raising(error):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize("line", [["--help"], [], ["--version"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_imports_nothing_heavy(line):
    code = (
        f"import sys\nfrom patchloom.train.cli import main\ntry: main({line!r})\n"
        "except SystemExit as e: assert not e.code\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]", done.stderr
    assert done.stdout.startswith(f"patchloom {__version__}" if line == ["--version"] else "usage: patchloom")


def test_help_is_quick():
    times = []
    for _ in range(3):  # seconds of the processor: the machine may be busy
        begun = os.times()
        subprocess.run([sys.executable, "-m", "patchloom", "--help"], check=True, capture_output=True)
        ended = os.times()
        times.append(ended.children_user + ended.children_system - begun.children_user - begun.children_system)
    assert min(times) < 0.5


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["bech"], "unknown command 'bech'; did you mean bench?"),
        (["fly"], "unknown command 'fly'; choose from fit, "),
        (
            ["bench", "--agianst", "x"],
            "unrecognized argument '--agianst'; did you mean --against?; see patchloom bench --help",
        ),
        (["bench", "--against"], "argument --against: expected one argument"),
        (["-c", "x"], "no command"),
    ],
)
def test_usage_is_one_line_and_2(monkeypatch, capsys, line, says):
    fake(monkeypatch, lambda args: 0)
    assert cli.main(line) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("patchloom: error: ")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError(2, "No such file or directory", "x.jpg"), "x.jpg: No such file or directory"),
        (
            ModuleNotFoundError("No module named 'torchmetrics.text'", name="torchmetrics.text"),
            "pip install 'patchloom[train]'",
        ),
    ],
)
def test_errors_on_purpose_are_one_line(monkeypatch, capsys, error, says):
    fake(monkeypatch, raising(error))
    assert cli.main(["bench"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("patchloom: error: ")
    assert says in err
    assert err.count("\n") == 1
    with pytest.raises(type(error)):
        cli.main(["bench", "--traceback"])


def test_own_errors_are_one_line_and_bugs_keep_their_traceback(monkeypatch, capsys):
    own = type("SeamError", (RuntimeError,), {"__module__": "patchloom.vision.block"})
    fake(monkeypatch, raising(own("block 3 has no keys")))
    assert cli.main(["bench"]) == 1
    assert capsys.readouterr().err == "patchloom: error: block 3 has no keys\n"
    for bug in (
        RuntimeError("a bug"),
        KeyError("x"),
        ModuleNotFoundError("No module named 'patchlom'", name="patchlom"),
    ):
        fake(monkeypatch, raising(bug))
        with pytest.raises(type(bug)):
            cli.main(["bench"])


def test_statuses_of_signals(monkeypatch, capsys):
    fake(monkeypatch, raising(KeyboardInterrupt()))
    assert cli.main(["bench"]) == 130
    before = signal.getsignal(signal.SIGTERM)
    fake(monkeypatch, lambda args: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5))
    assert cli.main(["bench"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_offline_and_the_verb_stand_anywhere(monkeypatch):
    seen = {}
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    fake(monkeypatch, lambda args: seen.update(vars(args), offline=os.environ.get("HF_HUB_OFFLINE")) or 0)
    assert cli.main(["--against", "x", "bench", "--offline"]) == 0
    assert seen["against"] == "x"
    assert seen["offline"] == "1"
    assert seen["command"] == "bench"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    fake(monkeypatch, lambda args: seen.update(vars(args), offline=os.environ.get("HF_HUB_OFFLINE")) or 0, PASS_ON=True)
    assert cli.main(["bench", "--trainer.x", "3", "--against=y"]) == 0
    assert seen["rest"] == ["--trainer.x", "3"]
    assert seen["against"] == "y"
    assert seen["offline"] is None


def test_a_closed_pipe_is_no_traceback(tmp_path):
    shell = f"{sys.executable} -m patchloom recipes --json | true"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""


def test_recipes_are_listed_and_found(tmp_path, capsys, monkeypatch):
    listed = list(recipes.recipes())
    assert {"shapes/cct", "cifar10/cct"} <= {recipe.name for recipe in listed}
    assert all(recipe.expect for recipe in listed), "every recipe says in its first line what to expect"
    assert cli.main(["recipes", "--json"]) == 0
    import json

    assert [r["name"] for r in json.loads(capsys.readouterr().out)] == [recipe.name for recipe in listed]
    assert recipes.find_recipe("shapes/cct") == recipes.FOLDER / "shapes" / "cct.yaml"
    assert recipes.recipe_name(recipes.FOLDER / "shapes" / "cct.yaml") == "shapes/cct"
    assert recipes.recipe_name("a/my.yaml") == "my"
    with pytest.raises(FileNotFoundError, match="no file and no recipe 'shapes/ctt'; did you mean shapes/cct"):
        recipes.find_recipe("shapes/ctt")
    assert cli.main(["recipes", "nothing-like-it"]) == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("a: 1")
    assert recipes.find_recipe("mine.yaml").samefile(tmp_path / "mine.yaml")


def test_python_m_patchloom_is_patchloom(tmp_path):
    assert patchloom("--version", cwd=tmp_path).stdout == f"patchloom {__version__}\n"


def test_a_module_of_ones_own_is_imported_from_here(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_words_of_mine.py").write_text("print('here I am')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(["--import", "own_words_of_mine", "--version"]) == 0
    assert capsys.readouterr().out.startswith("here I am\npatchloom ")
    assert cli.main(["recipes", "--import", "nobodys_module"]) == 2
    assert "--import nobodys_module: no such module here" in capsys.readouterr().err
    assert cli.main(["recipes", "--import"]) == 2
    assert "--import needs a value" in capsys.readouterr().err
