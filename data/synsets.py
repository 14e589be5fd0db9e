"""ImageNet's 1000 classes: synset -> index is sorted order; human names from the data's own file, else from timm's
table.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

NAME_FILES = ("classes.json", "LOC_synset_mapping.txt")


@lru_cache(maxsize=1)
def imagenet_synsets() -> list[str]:
    """The 1000 synsets, sorted: position = class index."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def human_names(root: Path, synsets: list[str]) -> list[str]:
    """A readable name for each synset: root/classes.json, root/LOC_synset_mapping.txt, else timm's lemmas."""
    from timm.data import ImageNetInfo

    info, own = ImageNetInfo("imagenet-1k"), _own_names(root)
    known = set(info.label_names())
    return [own.get(s) or (info.label_name_to_description(s) if s in known else s) for s in synsets]


def _own_names(root: Path) -> dict[str, str]:
    """synset -> name as the data set's own file says it; empty without such a file."""
    table, listing = (root / name for name in NAME_FILES)
    if table.is_file():
        try:
            rows = json.loads(table.read_text(encoding="utf-8"))
            items = rows.items() if isinstance(rows, dict) else [(row["synset"], row["name"]) for row in rows]
            pairs = [value if isinstance(value, list) else [key, value] for key, value in items]
            return {str(synset): str(name) for synset, name in pairs}
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{table}: expected [{{index, synset, name}}, ...] or {{index: [synset, name]}} ({error})"
            ) from error
    if listing.is_file():
        lines = (line.split(" ", 1) for line in listing.read_text(encoding="utf-8").splitlines() if " " in line)
        return {synset: name.strip() for synset, name in lines}
    return {}
