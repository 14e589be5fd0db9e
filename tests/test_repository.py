"""The repository as a whole: who imports whom, what the wheel holds, what starting costs."""

import ast
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from importlib.util import resolve_name
from pathlib import Path
from statistics import median

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
BELOW = {  # storey -> the storeys it may import besides itself
    "kernels": set(),
    "vision": {"kernels"},
    "multimodal": {"vision", "kernels"},
    "data": set(),
    "train": {"data", "multimodal", "vision", "kernels"},
    "configs": set(),
}
HEAVY = ["lightning", "pytorch_lightning", "torchmetrics", "torchdata", "matplotlib", "sklearn", "timm", "xformers"]
HEAVY += ["gradio", "transformers", "diffusers", "peft", "albumentations"]
HEAVY += ["patchloom.kernels.triton_scan"]  # not "triton": torch's own flop_counter imports it
FILES = sorted([*ROOT.glob("*.py"), *(path for storey in BELOW for path in (ROOT / storey).rglob("*.py"))])
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(code: str, *options: str, executable: Path | str = sys.executable, cwd: Path | None = None) -> str:
    done = subprocess.run([executable, *options, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def module_name(path: Path) -> str:
    """`patchloom.vision.zoo` of ROOT/vision/zoo.py, by where the file lies."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("patchloom", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, absolute module, whether it was written relatively) of each import in a file."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            yield from ((node.lineno, f"{base}.{alias.name}", node.level > 0) for alias in node.names)


def test_imports_point_down() -> None:
    wrong = []
    for path in FILES:
        storey = path.relative_to(ROOT).parts[0]
        allowed = {storey, *BELOW.get(storey, BELOW)}  # a module of the root stands above all storeys
        for line, name, _ in imports(path):
            package, _, rest = name.partition(".")
            if package == "patchloom" and rest.split(".")[0] in {*BELOW} - allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_imports_inside_the_package_are_relative() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in FILES
        for line, name, relative in imports(path)
        if name.split(".")[0] == "patchloom" and not relative
    ]
    assert not wrong, "\n".join(wrong)


def test_the_walk_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "kernels" / "scan.py"
    file.parent.mkdir()
    file.write_text(
        "from ..vision.block import Block\nimport patchloom.train\ndef f():\n    from .attend import attend\n"
    )
    assert list(imports(file)) == [
        (1, "patchloom.vision.block.Block", True),
        (2, "patchloom.train", False),
        (4, "patchloom.kernels.attend.attend", True),
    ]


def test_kernels_import_torch_alone() -> None:
    """And numpy, in which tables that depend on sizes alone are kept between calls."""
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "patchloom", "xformers", "triton"}
    found = {
        f"{p.name}:{n} {m}"
        for p in (ROOT / "kernels").rglob("*.py")
        for n, m, _ in imports(p)
        if m.split(".")[0] not in allowed
    }
    assert not found


def test_importing_the_models_pulls_in_no_heavy_library() -> None:
    models = [path for path in FILES if path.relative_to(ROOT).parts[0] in ("kernels", "vision")]
    modules = sorted({module_name(path) for path in models} - {"patchloom.kernels.triton_scan"})
    for group in (["patchloom"], ["patchloom", "patchloom.vision.zoo"], modules):
        walk = f"import sys, importlib\nfor m in {group!r}: importlib.import_module(m)\n"
        found = python(walk + f"print(*[m for m in {HEAVY!r} if m in sys.modules])").split()
        assert found == [], f"importing {group} imports these"


def test_the_packages_are_those_of_the_tree() -> None:
    tree = [module_name(p) for p in FILES if p.name == "__init__.py"]
    assert sorted(tree) == sorted(PYPROJECT["tool"]["setuptools"]["packages"])
    homeless = {str(path.parent.relative_to(ROOT)) for path in FILES if not (path.parent / "__init__.py").exists()}
    assert not homeless, "folders with modules that lack an __init__.py"
    assert not [path for path in FILES if path.stem in ("utils", "common", "helpers", "misc")], (
        "a file is named for what it holds"
    )


def test_versions_agree() -> None:
    import patchloom

    assert patchloom.__version__ == PYPROJECT["project"]["version"]
    assert f"## {patchloom.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_what_is_required_is_in_the_tested_set() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {pin.name.lower(): pin for pin in (Requirement(line) for line in lines if not line.startswith("#"))}
    project = PYPROJECT["project"]
    for text in [
        *project["dependencies"],
        *project["optional-dependencies"]["train"],
        *project["optional-dependencies"]["dev"],
    ]:
        need = Requirement(text)
        if need.name != "setuptools":
            pin = pinned[need.name.lower()]
            assert need.specifier.contains(str(pin.specifier).removeprefix("==")), f"{need} is not met by {pin}"
    lightning = Requirement(
        next(text for text in project["optional-dependencies"]["train"] if text.startswith("lightning"))
    )
    assert not any(lightning.specifier.contains(version) for version in ("2.6.2", "2.6.3"))


# ------------------------------------------------------------------------------------------------------- the wheel


def closure(requirements: list[str]) -> set[str]:
    """The distributions that pip would install for these requirements, of those that are installed here."""
    todo, done = [Requirement(text) for text in requirements], set()
    while todo:
        need = todo.pop()
        key = (need.name.lower(), tuple(sorted(need.extras)))
        if key in done or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        done.add(key)
        for text in metadata.requires(need.name) or []:
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in ("", *need.extras)):
                child.marker = None
                todo.append(child)
    return {name for name, _ in done}


def link(names: set[str], target: Path) -> None:
    """Links the distributions' top-level files and folders into `target`."""
    for name in names:
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (target / top).exists():
                (target / top).symlink_to(Path(str(distribution.locate_file(top))))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that holds the wheel and what `pip install patchloom` brings, nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    source = folder / "source"
    source.mkdir()
    for name in [*BELOW, *(p.name for p in ROOT.glob("*.py")), "pyproject.toml", "README.md", "LICENSE"]:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, source], check=True
    )
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", symlinks=True)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    link(closure(PYPROJECT["project"]["dependencies"]), site)
    executable = folder / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", executable, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    return executable.parent


def test_the_wheel_holds_every_module_and_recipe(bare: Path) -> None:
    names = python(
        "from pathlib import Path; import patchloom\nroot = Path(patchloom.__file__).parent\n"
        "print(*(p.relative_to(root).as_posix() for p in root.rglob('*') if p.suffix in ('.py', '.yaml')), sep='\\n')",
        "-I", executable=bare / "python", cwd=bare,
    )  # fmt: skip
    recipes = list((ROOT / "configs").rglob("*.yaml"))
    assert recipes
    assert set(names.split()) == {p.relative_to(ROOT).as_posix() for p in [*FILES, *recipes]}


def test_the_wheel_alone_lists_and_builds_models(bare: Path) -> None:
    out = python(
        f"import sys, patchloom, torch\nassert {str(ROOT)!r} not in patchloom.__file__\n"
        "names = patchloom.list_models()\n"
        "model = patchloom.create_model('vit_tiny_patch16_224', num_classes=3).eval()\n"
        "print(len(names), 'swin_tiny' in names, *model(torch.zeros(1, 3, 224, 224)).shape)\n"
        "from importlib.util import find_spec\n"
        "print(*(m for m in ('lightning', 'torchmetrics', 'gradio') if find_spec(m)))",
        "-I", executable=bare / "python", cwd=bare,
    ).splitlines()  # fmt: skip
    count, swin, *shape = out[0].split()
    assert int(count) > 50
    assert swin == "True"
    assert shape == ["1", "3"]
    assert out[1] == "", "the bare environment is not bare"


def test_the_installed_command_works(bare: Path, tmp_path: Path) -> None:
    def patchloom(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([bare / "patchloom", *words], capture_output=True, text=True, cwd=tmp_path)

    listed = patchloom("models", "swin_t*", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "swin_tiny" in [row["name"] for row in json.loads(listed.stdout)]
    recipes = patchloom("recipes")
    assert "shapes/cct" in recipes.stdout, recipes.stderr
    trained = patchloom("fit", "-c", "shapes/cct")
    assert trained.returncode == 1
    assert "pip install 'patchloom[train]'" in trained.stderr
    assert len(trained.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ what starting costs


def cpu_seconds(*command: str) -> float:
    """Processor time of a command, which the neighbours on a shared machine do not lengthen much."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def test_import_costs_little_more_than_torch() -> None:
    lines = {"torch": "import torch", "package": "import patchloom", "models": "from patchloom import create_model"}
    times: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(4):
        for name, line in lines.items():
            times[name].append(cpu_seconds(sys.executable, "-c", line))
    assert min(times["package"]) < 1.3 * min(times["torch"])
    assert min(times["models"]) < 1.3 * min(times["torch"])


def test_help_is_quick_and_needs_no_torch() -> None:
    command = Path(sys.executable).with_name("patchloom")
    assert median(cpu_seconds(str(command), "--help") for _ in range(5)) < 0.5
    code = "import sys\nfrom patchloom.train.cli import main\nmain(['--help'])\nassert 'torch' not in sys.modules"
    assert "fit" in python(code)
