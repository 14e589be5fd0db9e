"""The curriculum of IA-RED² (https://arxiv.org/abs/2106.12620): one interpreter after the other."""

import lightning.pytorch as L

from ...vision.plugins.ia_red import Interpreter, interpreters_of
from ..objectives.interpreters import PolicyGradient


class InterpreterCurriculum(L.Callback):
    """Cuts the run into as many parts as there are interpreters. In part g interpreter g comes into play (later ones
    drop nothing yet): it learns for `share` of the part's epochs, then the backbone learns to do with what is left."""

    def __init__(self, share: float = 1 / 3):
        if not 0 < share < 1:
            raise ValueError(f"share={share}: the interpreter's part of the epochs, between 0 and 1")
        self.share = share

    def at(self, epoch: int, epochs: int, groups: int) -> tuple[int, bool]:
        """(the group that is learnt in `epoch` of `epochs`, whether its interpreter learns)."""
        group = epoch * groups // epochs
        start, end = -(-group * epochs // groups), -(-(group + 1) * epochs // groups)
        return group, epoch - start < max(1, round(self.share * (end - start)))

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not isinstance(module.loss, PolicyGradient):
            raise ValueError(
                f"InterpreterCurriculum: the loss is {type(module.loss).__name__}; set model.loss to "
                "patchloom.train.objectives.interpreters.PolicyGradient"
            )
        wanted = 2 * len(interpreters_of(module.model))
        if (trainer.max_epochs or 0) < wanted:
            raise ValueError(
                f"InterpreterCurriculum: trainer.max_epochs={trainer.max_epochs}; this model takes {wanted} epochs at "
                "least, one for each interpreter and one for the backbone after each"
            )

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch, batch_idx: int) -> None:
        epochs, groups = trainer.max_epochs, len(interpreters_of(module.model))
        module.loss.group, interpreting = self.at(trainer.current_epoch, epochs, groups)
        module.loss.learns = "interpreter" if interpreting else "backbone"
        for part in module.modules():  # those of an average, too
            if isinstance(part, Interpreter):
                part.on.fill_(part.group <= module.loss.group)
