"""Which of a network's classes are which of the data's, by their names."""

from collections.abc import Sequence

from ...data.folders import quoted


def matched(classes: Sequence[str], names: Sequence[str], spec: str, source: str) -> tuple[list[int | None], list[str]]:
    """(the place of each class among the annotations' `names`, or None; a note on those that are not there).

    Raises ValueError where none is.
    """
    place = {name: i for i, name in enumerate(names)}
    found = [place.get(name) for name in classes]
    if all(i is None for i in found):
        raise ValueError(
            f"{spec} knows no category of {source}: it finds {quoted(list(classes))}; the annotations have "
            f"{quoted(list(names))}"
        )
    strange = [name for name in classes if name not in place]
    if not strange:
        return found, []
    return found, [f"{len(strange)} of {len(classes)} classes of {spec} are not annotated ({quoted(strange)})"]


def unknown(classes: Sequence[str], names: Sequence[str], spec: str, counts: Sequence[int], what: str) -> list[str]:
    """A note on the annotated categories that the network does not know; of each there are `counts` of `what`."""
    lacking = [k for k, name in enumerate(names) if name not in set(classes)]
    if not lacking:
        return []
    which = f"{len(lacking)} of {len(names)} categories ({quoted([names[k] for k in lacking])})"
    return [f"{spec} does not know {which}: their {sum(counts[k] for k in lacking)} {what} count as missed"]
