"""patchloom eval TASK: official metrics on an official layout."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from . import ade20k, caption, classes, coco, fid, panoptic, pope, retrieval, vqa, zeroshot

EXAMPLES = """examples:
  patchloom eval imagenet swin_tiny --data /data/imagenet
  patchloom eval imagenet timm:resnet50.a1_in1k --data /data/imagenet --size 288 --json
  patchloom eval folder runs/folder-cct/2026-01-31_12-00 --data photos/
  patchloom eval coco --annotations instances_val2017.json --results detections.json"""


@dataclass(frozen=True)
class Task:
    """One word after `patchloom eval`. Both functions import what they need when they're called."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


TASKS: dict[str, Task] = {
    "imagenet": Task(
        "Acc@1 and Acc@5 on a folder in ImageNet's layout, or on the classes of a run",
        classes.add_arguments,
        classes.run,
    ),
    "folder": Task(
        "Acc@1 and Acc@5 of a trained run on a folder with one folder a class", classes.add_arguments, classes.run
    ),
    "coco": Task(coco.HELP, coco.add_arguments, coco.run),
    "panoptic": Task(panoptic.HELP, panoptic.add_arguments, panoptic.run),
    "ade20k": Task(ade20k.HELP, ade20k.add_arguments, ade20k.run),
    "fid": Task(fid.HELP, fid.add_arguments, fid.run),
    "pope": Task(pope.HELP, pope.add_arguments, pope.run),
    "vqa": Task(vqa.HELP, vqa.add_arguments, vqa.run),
    "caption": Task(caption.HELP, caption.add_arguments, caption.run),
    "retrieval": Task(retrieval.HELP, retrieval.add_arguments, retrieval.run),
    "zeroshot": Task(zeroshot.HELP, zeroshot.add_arguments, zeroshot.run),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK", title="tasks")
    for name, task in TASKS.items():
        one = tasks.add_parser(
            name,
            help=task.help,
            description=task.help,
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        task.add_arguments(one)


def run(args: argparse.Namespace) -> int:
    return TASKS[args.task].run(args)
