"""patchloom latents DATA OUT: what an autoencoder makes of pictures, once and for all, for diffusion in latents."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..saved.judge import choose_device, image_size, positive
from ..tables import write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from ...data.latents import Manifest
    from ...vision.generation.autoencoder import Autoencoder

EXAMPLES = """examples:
  patchloom latents imagenet/ imagenet-latents/ --vae stabilityai/sd-vae-ft-ema --size 256 --flips
  patchloom latents photos/ latents/ --vae folder-of-a-vae/ --size 64 --dtype float32
DATA: train/, val/ and test/ of class folders, or class folders (all of them are then for training), or pictures without
classes. Stopped, it goes on where it was when it is called again. To train on them: data.class_path
patchloom.data.latents.LatentsData, data.root OUT."""
DTYPES = ("float16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("data", metavar="DATA", help="the pictures, in class folders or not")
    parser.add_argument("out", metavar="OUT", help="the folder to write; made where it is missing")
    parser.add_argument(
        "--vae", default="stabilityai/sd-vae-ft-ema", metavar="DIR|NAME",
        help="an AutoencoderKL of diffusers: a folder, or a name on the hub (stabilityai/sd-vae-ft-ema)",
    )  # fmt: skip
    parser.add_argument("--size", type=image_size, default=(256, 256), metavar="N|HxW", help="of the pictures (256)")
    parser.add_argument("--flips", action="store_true", help="the mirrored pictures too")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float16", help="what they are stored as (float16: 0.05%% off)"
    )
    parser.add_argument("--shard", type=positive, default=4096, metavar="N", help="pictures a file (4096)")
    parser.add_argument("--batch", type=positive, default=16, metavar="N", help="pictures at a time (16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto: a GPU where there is one)")
    parser.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="what to do at an unreadable picture (stop)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from ...data.latents import MANIFEST
    from ...vision.generation.autoencoder import Autoencoder

    sources = sources_of(args.data)
    device = choose_device(args.device)
    autoencoder = Autoencoder(args.vae).to(device)
    f = autoencoder.space.factor
    if args.size[0] % f or args.size[1] % f:
        raise ValueError(f"--size {args.size[0]}x{args.size[1]}: sides must be multiples of {f} for {args.vae}")
    manifest = begin(Path(args.out), plan(args, autoencoder, sources))
    splits = {split: list(shards(args, split, source, autoencoder, manifest)) for split, source in sources.items()}
    write_whole(Path(args.out) / MANIFEST, replace(manifest, splits=splits).text())
    counts = {split: sum(n for _, n in files) for split, files in splits.items()}
    said = {"out": args.out, "autoencoder": args.vae, "size": list(manifest.size), "pictures": counts}
    if args.json:
        print(json.dumps(said))
    else:
        each = ", ".join(f"{n:,} of {split}" for split, n in counts.items())
        print(f"{args.out}: {' x '.join(map(str, manifest.size))} latents of {each}")
    return 0


def sources_of(data: str) -> dict[str, Any]:
    """The pictures of each split, with labels: all are of one class where they lie in no class folders."""
    from ...data.folders import Files, Folder, existing
    from ...data.splits import same_classes, split_folders

    root = existing(data)
    if root.is_file():
        raise NotADirectoryError(f"{root} is a file: a folder of pictures is needed")
    if there := split_folders(root):
        found = {split: Folder(place) for split, place in there.items()}
        for other in found.values():
            same_classes(next(iter(found.values())), other)
        return found
    if any(p.is_dir() and not p.name.startswith(".") for p in root.iterdir()):
        return {"train": Folder(root)}
    return {"train": Files(root)}


def plan(args: argparse.Namespace, autoencoder: "Autoencoder", sources: dict[str, Any]) -> "Manifest":
    """What the run will write."""
    from ...data.latents import Manifest

    space, (height, width) = autoencoder.space, args.size
    size = (space.channels, height // space.factor, width // space.factor)
    classes = next(iter(sources.values())).classes
    return Manifest(space.plain(), size, classes or ["picture"], args.dtype, args.flips)


def begin(out: Path, wanted: "Manifest") -> "Manifest":
    """The manifest of a folder that is begun or gone on with. Raises ValueError where it holds other latents."""
    from ...data.latents import MANIFEST, Manifest
    from ...vision.generation.autoencoder import LatentSpace

    if (out / MANIFEST).is_file():
        there = Manifest.read(out)
        LatentSpace.of(there.latents).check(LatentSpace.of(wanted.latents), str(out), "the ones that are asked for")
        for name in ("size", "dtype", "flips", "classes"):
            if (was := getattr(there, name)) != (now := getattr(wanted, name)):
                raise ValueError(
                    f"{out} holds latents with {name} {brief(was)}, asked for is {brief(now)}: take another OUT"
                )
        return wanted
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no latents: take another OUT")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / MANIFEST, wanted.text())  # without splits: they are not complete
    return wanted


def brief(value: Any, most: int = 80) -> str:
    text = str(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def shards(
    args: argparse.Namespace, split: str, source: Any, autoencoder: "Autoencoder", manifest: "Manifest"
) -> Iterator[tuple[str, int]]:
    """Writes the files of a split that are not there yet; (name, rows) of each."""
    from tqdm import tqdm

    starts = range(0, len(source), args.shard)
    with tqdm(total=len(source), unit="img", desc=split, disable=None, file=sys.stderr) as bar:
        for number, start in enumerate(starts):
            indices = range(start, min(start + args.shard, len(source)))
            name = f"{split}-{number:05}.safetensors"
            path, names = Path(args.out) / name, digest_of_names([relpath(source.name(i), args.data) for i in indices])
            rows = rows_of(path, names)
            if rows is None:
                rows = write_shard(path, names, encoded(args, source, indices, autoencoder, bar), manifest)
            else:
                bar.update(len(indices))
            if rows:
                yield name, rows


def digest_of_names(names: Sequence[str]) -> str:
    import hashlib

    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def rows_of(path: Path, names: str) -> int | None:
    """How many rows a finished file of these pictures has; None where there is none."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("names") != names:
                raise ValueError(
                    f"{path} holds latents of other pictures: DATA or --shard has changed; take another OUT"
                )
            return int(file.get_slice("labels").get_shape()[0])
    except SafetensorError:  # damaged: it is made anew
        return None


def encoded(
    args: argparse.Namespace, source: Any, indices: range, autoencoder: "Autoencoder", bar: Any
) -> "Iterator[dict[str, Tensor]]":
    """Batch by batch: mean, std (b, C, h, w), labels (b,), and the same of the mirrored pictures."""
    import torch

    from ...data.centre_crop import centre_crop, to_tensor
    from ...data.read import UnreadableImage

    device = next(autoencoder.parameters()).device
    for start in range(indices.start, indices.stop, args.batch):
        pictures, labels = [], []
        for i in range(start, min(start + args.batch, indices.stop)):
            bar.update()
            try:
                image, label = source.load(i)
            except UnreadableImage as error:
                if args.on_error == "stop":
                    raise UnreadableImage(
                        error.file, f"{error.reason} (--on-error skip leaves such files out)"
                    ) from error
                print(f"left out: {error}", file=sys.stderr)
                continue
            pictures.append(to_tensor(centre_crop(image, args.size)))
            labels.append(label if source.classes else 0)
        if not pictures:
            continue
        x = torch.stack(pictures).to(device).float() / 127.5 - 1
        found = dict(zip(("mean", "std"), autoencoder.encode(x), strict=True))
        if args.flips:
            found |= dict(zip(("mean_flipped", "std_flipped"), autoencoder.encode(x.flip(3)), strict=True))
        made = {name: t.to("cpu", getattr(torch, args.dtype)) for name, t in found.items()}
        yield made | {"labels": torch.tensor(labels)}


def write_shard(path: Path, names: str, batches: "Iterator[dict[str, Tensor]]", manifest: "Manifest") -> int:
    """The file, whole or not there; how many rows it has (0: none was readable, and there is no file)."""
    import torch
    from safetensors.torch import save

    parts = list(batches)
    if not parts:
        return 0
    tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
    for name, t in tensors.items():
        if not torch.isfinite(t).all():
            raise ValueError(f"{path.name}: {name} is not finite in {manifest.dtype}; use --dtype float32")
    write_whole(path, save(tensors, {"names": names}))  # one entry: their order would be random
    return len(tensors["labels"])
