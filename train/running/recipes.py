"""patchloom recipes: the packaged YAML files, with what to expect of each; and how their names are found."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..cli import near
from ..tables import table

FOLDER = Path(__file__).resolve().parents[2] / "configs"


class Recipe(NamedTuple):
    name: str
    expect: str
    file: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pattern", nargs="?", default="", help="only names that contain this, or that it matches (cifar10/*)"
    )
    parser.add_argument("--json", action="store_true", help='print [{"name", "expect", "file"}]')


def run(args: argparse.Namespace) -> int:
    chosen = [recipe for recipe in recipes() if args.pattern in recipe.name or Path(recipe.name).match(args.pattern)]
    if not chosen:
        raise ValueError(
            f"no recipe matches {args.pattern!r}{near(args.pattern, names()) or '; there are ' + ', '.join(names())}"
        )
    if args.json:
        print(json.dumps([recipe._asdict() for recipe in chosen], indent=1, ensure_ascii=False))
    else:
        print(table(("recipe", "what to expect"), [(recipe.name, recipe.expect) for recipe in chosen]))
    return 0


def recipes() -> Iterator[Recipe]:
    """All packaged ones, by name; `expect` is the comment on their first line, without the command that it may begin
    with.
    """
    for path in sorted(FOLDER.glob("*/*.yaml")):
        name = f"{path.parent.name}/{path.stem}"
        with path.open(encoding="utf-8") as file:
            first = file.readline().strip()
        text = first.removeprefix("#").strip() if first.startswith("#") else ""
        yield Recipe(name, text.removeprefix(f"patchloom fit -c {name}").strip(), str(path))


def names() -> list[str]:
    return [recipe.name for recipe in recipes()]


def find_recipe(spec: str) -> Path:
    """The YAML file that `spec` is or names; one's own file goes before a packaged recipe."""
    path = Path(spec)
    if path.is_file():
        return path
    packaged = FOLDER / f"{spec.removesuffix('.yaml')}.yaml"
    if packaged.is_file() and packaged.resolve().is_relative_to(FOLDER):
        return packaged
    if path.suffix in (".yaml", ".yml", ".json"):
        raise FileNotFoundError(f"no file {spec}")
    raise FileNotFoundError(
        f"no file and no recipe {spec!r}{near(spec, names()) or '; there are ' + ', '.join(names())}"
    )


def recipe_name(path: str | Path) -> str:
    """cifar10/cct for the packaged file, `my` for my.yaml; a saved config.yaml stands for the run that it lies in."""
    path = Path(path).resolve()
    if path.is_relative_to(FOLDER):
        return path.relative_to(FOLDER).with_suffix("").as_posix()
    return path.parent.parent.name if path.name == "config.yaml" else path.stem
