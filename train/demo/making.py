"""The generation tab: images by class or caption, with progress."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ...vision.generation.samplers import SAMPLERS
from ..saved.maker import ImageMaker, MakeSettings, name_of
from .limits import Clock, Limits, Refused, choice, choices, number, whole, words
from .shelf import Shelf

OWN = "its own"
Told = Callable[[float, str], None]


@dataclass(frozen=True)
class Made:
    images: list[tuple[Image.Image, str]]  # with the class or caption
    text: str


@dataclass(frozen=True)
class Takes:
    """What a model wants to be told."""

    classes: list[str]
    captions: bool
    guided: bool


def takes(shelf: Shelf, limits: Limits, model: Any) -> Takes:
    with shelf.borrowed(model, Clock(limits.seconds), "generate") as maker:
        return taken_by(maker)


def taken_by(maker: ImageMaker) -> Takes:
    count, captions = maker.model.num_classes, maker.model.text is not None
    names = [maker.classes[i] if i < len(maker.classes) else str(i) for i in range(count or 0)]
    return Takes([] if captions else names, captions, captions or bool(count))


def make(
    shelf: Shelf, limits: Limits, model: Any, classes: Any = None, caption: Any = "", *, count: Any = 4,
    steps: Any = 25, guidance: Any = 1.0, seed: Any = 0, sampler: Any = OWN, told: Told | None = None,
) -> Made:  # fmt: skip
    """`count` images of each class (none named: of the first eight, as far as the number goes), or of the caption. The
    same seed, the same images. `told` hears how far it is, from 0 to 1."""
    count, steps = whole(count, "the number of images", 1, limits.images), whole(steps, "steps", 1, limits.steps)
    scale, seed = number(guidance, "guidance", 0, 20), whole(seed, "the seed", 0, 2**31 - 1)
    sampler = choice(sampler, "the sampler", [OWN, *SAMPLERS])
    clock = Clock(limits.seconds)
    with shelf.borrowed(model, clock, "generate") as maker:
        titles = wanted(maker, limits, classes, caption, count)
        settings = MakeSettings(None if sampler == OWN else sampler, steps, scale, seed=seed)
        conditions: Any = len(titles)
        if maker.model.text is not None:
            conditions = titles
        elif maker.model.num_classes is not None:
            names = taken_by(maker).classes
            conditions = [names.index(title) for title in titles]
        maker.check(conditions, settings)
        built = settings.build_sampler(maker.process)
        runs = (len(maker.process.levels(built.steps)) - 1) * (2 if name_of(built) == "heun" else 1)
        seen = 0

        def ran() -> None:
            nonlocal seen
            seen += 1
            if told is not None:
                told(min(1.0, seen / max(1, runs)), f"step {min(seen, runs)} of {runs}")

        with clock.watching(maker.model, ran):
            found = [image for x in maker.images(conditions, settings, batch=len(titles)) for image in x]
        protocol = maker.protocol(settings)
    images = [(enlarged(image.permute(1, 2, 0).numpy()), title) for image, title in zip(found, titles, strict=True)]
    text = f"{len(images)} images, {protocol['sampler']}, {steps} steps, guidance {scale:g}, seed {seed}"
    return Made(images, text)


def wanted(maker: ImageMaker, limits: Limits, classes: Any, caption: Any, count: int) -> list[str]:
    """A title for each image, in the order in which they are shown. Raises Refused for more than are made at a time."""
    known = taken_by(maker)
    if known.captions:
        return [words(caption, "the caption", limits.text)] * count
    if not known.classes:
        return ["image"] * count
    chosen = choices(classes, "a class", known.classes) or known.classes[: max(1, min(8, limits.images // count))]
    if (total := count * len(chosen)) > limits.images:
        raise Refused(f"{count} images of each of {len(chosen)} classes are {total}: at most {limits.images} are made")
    return [name for name in chosen for _ in range(count)]


def enlarged(pixels: Any) -> Image.Image:
    times = max(1, round(192 / max(pixels.shape[:2])))
    return Image.fromarray(pixels.repeat(times, 0).repeat(times, 1))
