"""Which kind of backbone trains and answers under which dense head: plain, with token clustering and with LoRA."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...vision.pyramid import Pyramid

HEAD_KINDS = {  # kind of backbone -> the smallest variant that stands for it
    "ViT": "vit_tiny_patch16_224",
    "Swin": "swin_tiny",
    "CvT": "cvt_13",
    "ConvNeXt": "convnext_tiny",
    "PoolFormer": "poolformer_s12",
    "Vim": "vim_tiny",
    "VMamba": "vmamba_tiny_s1l8",
    "VSSD": "vssd_micro",
}
HEADS = ("Mask R-CNN", "UPerNet", "Mask2Former")
ADDED = ("", "clustering", "lora")  # nothing; a token plugin that unmerges; an adapter
SIZE, CLASSES = (160, 224), 3  # of the images (H, W), of what is told apart


def built(pyramid: "Pyramid", head: str) -> "nn.Module":
    """A narrow one of that head."""
    from ...vision.heads.detection import MaskRCNN
    from ...vision.heads.mask2former import Mask2Former
    from ...vision.heads.semantic import UPerNet

    made: dict[str, Callable[[], nn.Module]] = {
        "Mask R-CNN": partial(MaskRCNN, pyramid, CLASSES, 32, 64),
        "UPerNet": partial(UPerNet, pyramid, CLASSES, 32, auxiliary=16),
        "Mask2Former": partial(Mask2Former, pyramid, CLASSES, 12, 32, 4, 1, 3),
    }
    return made[head]()


def put_on(pyramid: "Pyramid", added: str) -> Callable[[], Any]:
    """Returns what takes it off again. Raises SeamError or AdapterError where it does not go."""
    from ...vision.adapters import ADAPTERS, adapt, adapter
    from ...vision.plugins import attach, plugin

    if not added:
        return lambda: None
    return adapt(pyramid, adapter(added)) if added in ADAPTERS else attach(pyramid, plugin(added))


def losses(model: "nn.Module", head: str, images: "Tensor") -> "dict[str, Tensor]":
    """Of two images, each with two rectangles, which overlap."""
    import torch

    from ...vision.heads.mask_losses import MaskLosses
    from ...vision.heads.segments import of_instances
    from ...vision.heads.semantic_loss import SemanticLosses

    boxes = torch.tensor([[10.0, 20, 70, 90], [30, 5, 190, 150]])
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    target = {"boxes": boxes, "labels": torch.tensor([1, CLASSES]), "masks": masks}
    if head == "Mask R-CNN":
        return model(list(images), [target] * len(images))
    if head == "Mask2Former":
        return MaskLosses(points=256)(model(images), [of_instances(target)] * len(images))
    return SemanticLosses()(model.both(images), masks.long().sum(0).expand(len(images), *SIZE))  # type: ignore[operator]


def answers(found: Any) -> "list[Tensor]":
    """All tensors that a model answered with."""
    import torch

    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, dict):
        return list(found.values())
    if isinstance(found, list):
        return [t for each in found for t in answers(each)]
    return [found.last.classes, found.last.masks]


def take_steps(name: str, head: str, added: str) -> None:
    """A training step on two images of SIZE, and an evaluation step. Raises ArithmeticError where a loss, a gradient or
    an answer is no finite number, or where nothing of the backbone learns."""
    import torch

    from ...vision.zoo import create_model

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        pyramid = create_model(name, features_only=True)
        put_on(pyramid, added)
        model, images = built(pyramid, head).train(), torch.randn(2, 3, *SIZE)
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, 1e-4)
        lost = losses(model, head, images)
        sum(lost.values()).backward()  # type: ignore[union-attr]
        reached = [p.grad for p in pyramid.parameters() if p.requires_grad and p.grad is not None]
        if not any(bool(g.any()) for g in reached):
            raise ArithmeticError(f"{name} under {head} {added}: no gradient reaches the backbone")
        optimizer.step()
        with torch.inference_mode():
            said = answers(model.eval()(images))
    for what, values in (("loss", lost.values()), ("gradient", reached), ("answer", said)):
        if not all(bool(v.isfinite().all()) for v in values):
            raise ArithmeticError(f"{name} under {head} {added}: a {what} is no finite number")


@lru_cache
def obstacles(name: str) -> "dict[str, ValueError]":
    """Of ADDED, what the backbone refuses, and its words. Built without memory, and no head: none is asked."""
    import torch

    from ...vision.adapters import AdapterError
    from ...vision.plugins import SeamError
    from ...vision.zoo import create_model

    found: dict[str, ValueError] = {}
    with torch.device("meta"):
        pyramid = create_model(name, features_only=True)
        for added in ADDED:
            try:
                put_on(pyramid, added)()
            except (SeamError, AdapterError) as error:
                found[added] = error
    return found
