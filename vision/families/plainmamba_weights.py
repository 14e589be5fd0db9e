"""What is published for PlainMamba (arXiv 2403.17695), at https://huggingface.co/ChenhongyiYang/PlainMamba."""

from ..published import Weights

_TOP = {"l1": (77.9, 94.0), "l2": (81.6, 95.6), "l3": (82.3, 95.9)}
WEIGHTS: dict[str, tuple[Weights, ...]] = {
    f"plainmamba_{size}": (
        Weights(
            "in1k", f"hf-hub:ChenhongyiYang/PlainMamba/{size}.pth", "apache-2.0", wrapper="state_dict",
            metrics={"top1": top1, "top5": top5},
        ),
    )
    for size, (top1, top5) in _TOP.items()
}  # fmt: skip
