"""What is published for Vision Mamba (arXiv 2401.09417), at https://huggingface.co/hustvl."""

from ..published import Weights


def _row(repository: str, file: str, top1: float, top5: float) -> Weights:
    return Weights(
        "in1k", f"hf-hub:hustvl/{repository}/{file}.pth", "apache-2.0", wrapper="model",
        metrics={"top1": top1, "top5": top5},
    )  # fmt: skip


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    "vim_tiny": (_row("Vim-tiny-midclstok", "vim_t_midclstok_76p1acc", 76.1, 93.0),),
    "vim_tiny_stride8": (_row("Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc", 78.3, 94.2),),
    "vim_small": (_row("Vim-small-midclstok", "vim_s_midclstok_80p5acc", 80.5, 95.1),),
    "vim_small_stride8": (_row("Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc", 81.6, 95.4),),
    "vim_base": (_row("Vim-base-midclstok", "vim_b_midclstok_81p9acc", 81.9, 95.8),),
}
