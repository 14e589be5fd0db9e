"""Words and options of a command line, and results in words."""

from collections.abc import Iterator

SHARES = ("f1", "miou", "macc", "aacc", "pq", "sq", "rq")  # shown as per cent, as are top…, map… and mar…


def split_words(rest: list[str]) -> tuple[list[str], list[str]]:
    """(words, options with their values): a word is what follows neither an option nor one that carries its value with
    `=`.
    """
    words, options, takes = [], [], False
    for word in rest:
        if word.startswith("-") and not word[1:2].isdigit():
            options.append(word)
            takes = "=" not in word and not word.startswith(("--print_config", "--help"))
        elif takes:
            options.append(word)
            takes = False
        else:
            words.append(word)
    return words, options


def pairs(options: list[str]) -> Iterator[tuple[str, str | None]]:
    """(name without dashes, value) of each option."""
    for i, word in enumerate(options):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = options[i + 1] if i + 1 < len(options) and not options[i + 1].startswith("--") else None
            yield name, value if equals else following


def in_words(metrics: dict[str, float]) -> str:
    """{'test/top1': 0.953, 'test/loss': 0.21} -> top-1 95.30%   loss 0.210"""
    parts = []
    for name, value in metrics.items():
        short = name.rpartition("/")[2]
        share = short.startswith(("top", "map", "mar", "mask_m")) or short in SHARES
        parts.append(f"{short.replace('top', 'top-')} {value:.2%}" if share else f"{short} {value:.4g}")
    return "   ".join(sorted(parts, key=lambda part: not part.startswith("top")))


def numbers(results: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(value) for result in results for name, value in result.items()}
