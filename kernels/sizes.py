"""Questions about sizes that a model may be exported without knowing."""

import torch


def missing(size: int, multiple: int) -> int:
    """What `size` lacks of the next multiple; written so that a padded size is known to be one where sizes are open."""
    return (size + multiple - 1) // multiple * multiple - size


def always(condition: bool) -> bool:
    """`condition` on the sizes of tensors; in an export with sizes left open: whether it holds for all of them, so that
    the graph takes no branch that fits only the example it was made with."""
    if not torch.compiler.is_exporting():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)
