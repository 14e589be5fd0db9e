"""Mask R-CNN with our Swin-T pyramid against torchvision's own Mask R-CNN with timm's Swin-T: seconds an image, forward
and training step, in turns, with the same weights in both (of the FPN and the heads too). In Markdown; `--profile`
tells where ours spends its time.

`python tests/benchmarks/detection_speed.py [--size 512] [--batch 1] [--threads 2] [--seconds 60]`
"""

import argparse
import sys
from collections.abc import Mapping

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from patchloom.train.measure import Case, Spread, Step, alternate, circumstances, warm
from patchloom.train.saved.judge import positive
from patchloom.vision.heads.detection import MaskRCNN
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model

CLASSES, NAME = 90, "swin_tiny_patch4_window7_224"


class TimmMaps(nn.Module):
    """timm's maps behind torchvision's FPN, as its detectors take them."""

    out_channels = 256

    def __init__(self, size: int):
        super().__init__()
        self.body = timm.create_model(NAME, features_only=True, img_size=size)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 256, LastLevelMaxPool())

    def forward(self, image: Tensor) -> Mapping[str, Tensor]:
        maps = self.body(image)  # channels last
        return self.fpn({str(i): m.permute(0, 3, 1, 2) for i, m in enumerate(maps)})


def theirs(size: int) -> nn.Module:
    """Without normalisation and resizing, which ours leaves to the data."""
    model = TorchvisionMaskRCNN(TimmMaps(size), CLASSES + 1, min_size=size, max_size=size, image_mean=[0.0] * 3,
                                image_std=[1.0] * 3)  # fmt: skip
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight *= 30  # else nothing scores 0.05, and no mask is computed
    return model


def ours(other: nn.Module) -> nn.Module:
    """With the weights of the other."""
    pyramid = create_model("swin_tiny", features_only=True)
    body = {n: v for n, v in other.backbone.body.state_dict().items() if not n.endswith("relative_position_index")}
    load_published(pyramid, {n.replace("layers_", "layers."): v for n, v in body.items()}, source="timm")
    model = MaskRCNN(pyramid, CLASSES)
    fpn, neck = other.backbone.fpn, model.backbone.neck
    neck.lateral.load_state_dict({n.replace(".0.", "."): v for n, v in fpn.inner_blocks.state_dict().items()})
    neck.output.load_state_dict({n.replace(".0.", "."): v for n, v in fpn.layer_blocks.state_dict().items()})
    model.rpn.head.load_state_dict(other.rpn.head.state_dict())
    model.roi_heads.load_state_dict(other.roi_heads.state_dict())
    return model


def batch(size: int, count: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Noise, with eight rectangles an image."""
    g = torch.Generator().manual_seed(0)
    images, targets = [], []
    for _ in range(count):
        images.append(torch.randn(3, size, size, generator=g))
        corners = torch.randint(0, size // 2, (8, 2), generator=g)
        sides = torch.randint(size // 16, size // 2, (8, 2), generator=g)
        boxes = torch.cat([corners, corners + sides], 1)
        masks = torch.zeros(8, size, size, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        labels = torch.randint(1, CLASSES + 1, (8,), generator=g)
        targets.append({"boxes": boxes.float(), "labels": labels, "masks": masks})
    return images, targets


def forward(model: nn.Module, images: list[Tensor], targets: object) -> Step:
    def step() -> object:
        model.eval()
        with torch.inference_mode():
            return model(images)

    return step


def training(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)

    def step() -> None:
        torch.manual_seed(0)
        model.train()
        sum(model(images, targets).values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=positive, default=512)
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=60.0, help="at least, of each row")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    other = theirs(given.size)
    models = {"ours": ours(other), "torchvision and timm": other}
    images, targets = batch(given.size, given.batch)
    answers = {name: forward(m, images, targets)() for name, m in models.items()}
    found = {name: [len(one["scores"]) for one in answer] for name, answer in answers.items()}
    print(f"found: {found}", file=sys.stderr)
    print(f"| {given.size} px, batch {given.batch} | {', s | '.join(models)}, s | ratio of speed (quartiles) |")
    print("|---|---|---|---|")
    for title, make in (("forward", forward), ("training step", training)):
        steps = [make(m, images, targets) for m in models.values()]
        for step in steps:
            warm(step, "cpu")
        rounds = alternate(steps, seconds=given.seconds)
        times = [Spread.of(column).median / given.batch for column in zip(*rounds, strict=True)]
        ratio = Spread.of([b / a for a, b in rounds])
        spread = f"{ratio.median:.3f} ({ratio.low:.3f} … {ratio.high:.3f})"
        print(f"| {title} | {times[0]:.3f} | {times[1]:.3f} | {spread} |", flush=True)
        for name, step in zip(models, steps, strict=True) if given.profile else ():
            with torch.profiler.profile() as seen:
                step()
            print(
                f"\n{name}, {title}\n{seen.key_averages().table('self_cpu_time_total', row_limit=18)}", file=sys.stderr
            )
    print("\n" + ", ".join(f"{key} {value}" for key, value in circumstances(Case(given.batch)).items()))


if __name__ == "__main__":
    main()
