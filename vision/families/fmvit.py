"""FMViT, https://arxiv.org/abs/2311.05707: convolutional and multi-frequency blocks whose parts are trained as parallel
branches, and folded into single convolutions by `model.fold()`.

Neither code nor weights of it are published, and the table of its variants (T, S, M, B, L) was not at hand: its blocks
are here, and one network of them under a name of our own, `fmvit_own`, which is no network of the paper's.
"""

from ..backbone import Stage
from ..blocks.multigroup import MultiGroup
from ..mixers.each import Each
from ..mixers.frequency import Frequencies, MultiConv
from ..model import Head
from ..network import Network, Rules
from ..norm import Norm
from ..published import Weights
from ..stems.convolutional import ConvNormDown
from ..stems.convolutions import ConvLayers, Layer

WEIGHTS: dict[str, tuple[Weights, ...]] = {}
RULES: dict[str, Rules] = {}


def fmvit(dims: tuple[int, ...], depths: tuple[int, ...], drop_path: float) -> Network:
    """Next-ViT's plan (https://arxiv.org/abs/2207.05501): convolutional blocks, and a mixing one at the end of each
    stage but the first; its low frequencies have more of the channels the deeper it stands."""
    stages = []
    for i, (dim, n) in enumerate(zip(dims, depths, strict=True)):
        mixing = Frequencies((0.25, 0.5, 0.75)[i - 1], (4, 2, 1)[i - 1])
        mixer = Each((*(MultiConv(),) * (n - 1), mixing)) if i else MultiConv()
        stages.append(Stage(mixer, dim, n, 3.0, block=MultiGroup()))
    stem = ConvLayers((Layer(dims[0], 3, 2, "relu"), Layer(dims[0] // 2, 3, 1, "relu"), Layer(None, 3, 2, "relu")))
    return Network("fmvit", tuple(stages), stem, ConvNormDown(), Head(Norm("batch")), drop_path=drop_path)


VARIANTS = {"fmvit_own": fmvit((64, 128, 256, 512), (3, 4, 8, 3), 0.1)}
