"""Plain aligned tables for the terminal, and results that go to a file whole or not at all."""

import os
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> str:
    """`header` and `rows` in aligned columns two spaces apart; the columns named in `right` end flush."""
    unknown = set(right) - set(header)
    if unknown:
        raise ValueError(f"right={sorted(unknown)}: no such columns; there are {', '.join(header)}")
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [
            " " * (w - width(c)) + c if name in right else c + " " * (w - width(c))
            for c, w, name in zip(row, widths, header, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def width(text: str) -> int:
    """Columns that `text` takes on a terminal: wide East Asian characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def short(number: float | None, digits: int = 3) -> str:
    """28288354 -> 28.3M, 86 -> 86; None, where nothing is known, -> a dash."""
    if number is None:
        return "-"
    for unit, suffix in SUFFIXES:
        if abs(number) >= unit * (1 - 0.5 * 10.0**-digits):  # 999,999 is 1M, not 1000k
            return f"{number / unit:#.{digits}g}".rstrip(".") + suffix
    return f"{number:g}"


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Writes beside `path` and renames: the file is the old one or the new one, never half of it."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except OSError as error:
        now = "the old file is intact" if path.exists() else "nothing is left"
        raise OSError(f"cannot write {path}: {error.strerror or error}; {now}") from error
    finally:
        Path(name).unlink(missing_ok=True)
    return path
