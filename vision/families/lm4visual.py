"""LM4Visual, https://arxiv.org/abs/2310.12973: a ViT trained from scratch below a frozen layer of LLaMA-7B.

The layer is the last of 32; `language.load_language` fetches it out of LLaMA's file. Published weights hold it too, but
lie where no client of ours can fetch them (github.com/ziqipang/LM4VisualEncoding tells); `checkpoint_path` loads them.
"""

from dataclasses import replace

from ..language import LanguageLayers
from ..network import Network, Rules
from ..published import Weights
from . import vit as plain

WEIGHTS: dict[str, tuple[Weights, ...]] = {}


def vit_llama(size: str, patch: int) -> Network:
    network = plain.vit(size, patch, 224)
    return replace(network, family="lm4visual", head=replace(network.head, neck=LanguageLayers()))


VARIANTS = {
    **{f"vit_llama_{s}_patch16_224": vit_llama(s, 16) for s in ("tiny", "small", "base")},
    **{f"vit_llama_{s}_patch32_224": vit_llama(s, 32) for s in ("tiny", "base")},
}

LAYER, OURS = r"llama\.layers\.(\d+)\.", r"neck.blocks.\1."
NAMES = Rules(
    (
        *plain.NAMES.rename,
        *((LAYER + rf"attention\.w{n}\.weight", f"{OURS}mixer.qkv.weight[{i}/3]") for i, n in enumerate("qkv", 1)),
        (LAYER + r"attention\.wo\.weight", OURS + "mixer.proj.weight"),
        (LAYER + r"feed_forward\.w([123])\.weight", OURS + r"ffn.fc\2.weight"),
        (LAYER + r"attention_norm\.weight", OURS + "norm1.weight"),
        (LAYER + r"ffn_norm\.weight", OURS + "norm2.weight"),
        (r"llama\.norm\.weight", "neck.norm.weight"),
        (r"llama_dim_mapper1\.weight", "neck.enter.weight"),
        (r"llama_dim_mapper2\.weight", "neck.leave.weight"),
    ),
    pyramid=(*plain.NAMES.pyramid, r"llama\..*", r"llama_dim_mapper.*"),
)
RULES = {"published": NAMES}
