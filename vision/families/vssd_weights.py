"""What is published for VSSD (arXiv 2407.18559), at https://huggingface.co/YuhengSSS/VSSD; the repository has no
licence.

The weights with MESA were trained against their own average (https://arxiv.org/abs/2205.15480).
"""

from ..published import Weights


def _row(tag: str, file: str, top1: float, wrapper: str = "model") -> Weights:
    return Weights(tag, f"hf-hub:YuhengSSS/VSSD/{file}.pth", "none", wrapper=wrapper, metrics={"top1": top1})


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    "vssd_micro": (_row("in1k", "vssd_micro_best", 82.5),),
    **{
        f"vssd_{size}": (
            _row("in1k", f"vssd_{size}_best_ema", plain, "model_ema"),
            _row("mesa_in1k", f"vssd_{size}_e300_with_mesa", mesa),
        )
        for size, plain, mesa in (("tiny", 83.6, 84.1), ("small", 84.1, 84.5), ("base", 84.7, 85.4))
    },
}
