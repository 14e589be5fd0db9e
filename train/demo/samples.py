"""Sample pictures, drawn here: nothing is fetched."""

from pathlib import Path

from PIL import Image

from ...data.shapes import Shapes

TASKS = (("class", 4, (160, 160)), ("boxes", 4, (128, 160)))


def samples() -> list[Image.Image]:
    """One object each, then several."""
    found = []
    for task, count, size in TASKS:
        drawn = Shapes(count, size, task, seed=7, split="test")  # type: ignore[arg-type]
        found += [Image.fromarray(drawn[i].image) for i in range(count)]
    return found


def written(folder: Path) -> list[str]:
    """As files in the folder, which the page may serve."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, picture in enumerate(samples(), 1):
        paths.append(str(folder / f"sample {i}.png"))
        picture.save(paths[-1])
    return paths
