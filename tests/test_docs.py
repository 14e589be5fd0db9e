"""README, CONTRIBUTING and docs/ are true: their commands exist, and those of the guides run as written."""

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
FRONT = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
GUIDES = [ROOT / "docs" / "index.md", ROOT / "docs" / "start.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
SHRUNK = r"""#!/bin/bash
# every command as the page has it, with less work
case "${*#--import shift }" in
    *--print_config* | *--resume*) more=() ;;
    fit*) case "$*" in *folder/cct_7*) set -- "$@" --model.model.init_args.pretrained false ;; esac
          more=(--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1
                --trainer.limit_test_batches 1 --trainer.enable_progress_bar false) ;;
    bench*) more=(--repeats 1 --size 64 --no-memory) ;;
    tokens*) more=(--random-weights --repeats 1 --images 4 --points 2 --batch 2) ;;
    show-tokens*) more=(--random-weights) ;;
    *) more=() ;;
esac
exec PYTHON -m patchloom "$@" "${more[@]}"
"""


def blocks(language: str, files: list[Path]) -> list[str]:
    return [text for file in files for found, _, text in BLOCK.findall(file.read_text()) if found == language]


def commands(files: list[Path]) -> list[list[str]]:
    text = "\n".join(blocks("sh", files)).replace("\\\n", " ")
    lines = [part for line in text.splitlines() for part in re.split(r" && | > | \| ", line)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_first_screen_has_two_commands() -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    assert "make train" in first
    assert "make test" in first


def test_commands_of_the_front_pages_exist() -> None:
    seen = {words[1] for words in commands(FRONT) if words[0] == "patchloom"}
    assert {"fit", "predict", "models", "weights", "bench"} <= seen
    check_lines(FRONT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_commands_of_a_page_exist(page: Path) -> None:
    check_lines([page])


def check_lines(files: list[Path]) -> None:
    """Their parsers take them; targets of make are there."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for tool, *words in commands(files):
        if tool == "make":
            assert {word for word in words if not word.startswith("ARGS=")} <= set(targets), words
        elif tool == "patchloom":
            check_command(words)


def check_command(words: list[str]) -> None:
    """The command's own parser takes the line; a recipe that `-c` names is packaged."""
    from patchloom.train import cli

    words = words[2:] if words[0] == "--import" else words
    assert words[0] in cli.COMMANDS, words
    module = import_module(cli.COMMANDS[words[0]][0], "patchloom.train")
    parser = cli.Parser(prog=words[0])
    parser.set_defaults(command=words[0])
    module.add_arguments(parser)
    if getattr(module, "PASS_ON", False):
        parser.parse_known_args(words[1:])
    else:
        parser.parse_args(words[1:])
    for option, name in pairwise(words):
        if option == "-c" and not name.endswith(".yaml") and name.upper() != name:
            assert (ROOT / "configs" / f"{name}.yaml").is_file(), words


@pytest.mark.parametrize("code", blocks("python", FRONT))
def test_python_of_the_front_pages_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def test_yaml_of_the_readme_is_the_recipes() -> None:
    (text,) = blocks("yaml", [ROOT / "README.md"])
    recipe = (ROOT / "configs" / "shapes" / "hybrid.yaml").read_text()
    assert [line for line in text.splitlines() if line.strip() not in recipe] == []


def test_the_denoisers_of_the_page_are_those_of_the_package() -> None:
    from patchloom.train.catalogue import denoisers, models
    from patchloom.vision import zoo
    from patchloom.vision.generation import DENOISERS

    assert set(denoisers.FIGURES) == set(zoo.list_models(kind="denoiser"))
    stale = [n for n, found in denoisers.FIGURES.items() if found[0] != models.fingerprint(DENOISERS[n])]
    assert not stale, "python -m patchloom.train.catalogue.families --count"
    info = zoo.model_info("lego_s_u_32")
    assert (info.parameters, info.macs) == denoisers.FIGURES["lego_s_u_32"][1:]


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    """In a shell that stops at the first failure: files are written as the page titles them, Python and commands are
    run as they stand, with the work shrunk."""
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "patchloom"
    wrapper.write_text(SHRUNK.replace("PYTHON", sys.executable))
    wrapper.chmod(0o755)
    work = tmp_path / "work"
    for i in range(24):
        file = work / "mine" / ("cat", "dog")[i % 2] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (72, 64), (10 * i, 200, 255 - 10 * i)).save(file)
    Image.new("RGB", (90, 70), "orange").save(work / "photo.jpg")
    lines = ["set -euo pipefail"]
    for language, title, text in BLOCK.findall(page.read_text()):
        if title:
            (work / title).write_text(text)
        elif language == "python":
            lines.append(f"{sys.executable} - <<'END'\n{text}END")
        elif language == "sh":
            lines.append(text)
    environment = {
        **os.environ, "PATH": f"{wrapper.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "TERM": "dumb",
        "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=work, env=environment, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
