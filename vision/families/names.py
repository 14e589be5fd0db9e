"""Rules for names that most vision transformers share."""

import re


def mlp_and_norms(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """`mlp.fc1`, `mlp.fc2`, `norm1` and `norm2` of a block: theirs, a pattern with the stage's and block's numbers as
    groups, to ours."""
    n = re.compile(theirs).groups
    return (
        (theirs + r"mlp\.(fc[12])\.(weight|bias)", ours + rf"ffn.\{n + 1}.\{n + 2}"),
        (theirs + r"(norm[12])\.(weight|bias)", ours + rf"\{n + 1}.\{n + 2}"),
    )
