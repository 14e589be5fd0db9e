"""Which tower goes with which connector and which method in a vision-language pipeline: every cell is run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .compat import Cell, grid, refusal

if TYPE_CHECKING:
    from torch import Tensor

    from ...multimodal.connectors import Connector
    from ...multimodal.vlm import VisionLanguage

CONNECTORS = ("Project", "PixelShuffle", "Resampler")
FEWER = " fewer"  # the tower hands on the tokens that its plugin leaves
METHODS = {  # column -> how it is tried; of a tower, a decoder of four layers, or both
    "fastv": "fastv:k=1",
    "visual_depth": "visual_depth:k=1",
    "dpvr": "dpvr:k=1",
    "damro": "damro:top=2,alpha=1",
    "heavy_hitters": "heavy_hitters:budget=8,recent=4",
    "keyformer": "keyformer:budget=8,recent=4",
    "tome": "tome:r=1",
    "tome" + FEWER: "tome:r=1",
    "lora": "lora:r=2",
    "mole": "mole:r=2,experts=2",
}
SIZE, IMAGE = (96, 128), 63  # of the images (H, W), and the id that stands for one

PIPELINES_INTRODUCTION = """\
## In vision-language pipelines

A backbone as the tower, behind its last block or stage; a connector (`patchloom.multimodal.connectors`); and a method,
of the decoder, of the tower or of both, on a small LLaMA of four layers. "yes": with a plugin
(`patchloom.multimodal.plugins`) it answered two questions on images of 96 x 128 pixels; with an adapter of the decoder
it learned from them, connector and adapter both. "fewer": the decoder gets the fewer tokens that the tower's plugin
leaves. A number says why not. `patchloom compat --pipelines NAME …` tells of other towers; a test repeats the steps.
"""


def connector(name: str) -> "Connector":
    from ...multimodal.connectors import PixelShuffle, Project, Resampler

    made: dict[str, Connector] = {
        "Project": Project(2), "PixelShuffle": PixelShuffle(2), "Resampler": Resampler(4, 1, 2)
    }  # fmt: skip
    return made[name]


@lru_cache(maxsize=1)
def tower(name: str) -> Any:
    from ...vision.zoo import create_model

    return create_model(name, num_classes=0).requires_grad_(False)


def pipeline(name: str, connector_name: str) -> "VisionLanguage":
    """With a tower of that name and a small decoder."""
    from transformers import LlamaConfig

    from ...multimodal.decoder import decoder
    from ...multimodal.tower import Tower
    from ...multimodal.vlm import VisionLanguage

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return VisionLanguage(Tower(tower(name)), connector(connector_name), decoder(config), IMAGE)


def attempt(name: str, connector_name: str, method: str) -> ValueError | None:
    """Puts the method on such a pipeline, and takes a step: plugins answer two questions with three words, adapters
    learn from them. Returns what refuses. Raises ArithmeticError where a number is not finite, or nothing learns."""
    import torch

    from ...vision.adapters import ADAPTERS

    learns = METHODS[method].partition(":")[0] in ADAPTERS
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        vlm = pipeline(name, connector_name)
        where = f"{name} with {connector_name} and {method}"
        try:
            with put_on(vlm, method):
                learn(vlm, where) if learns else answer(vlm, where)
        except ValueError as error:
            return error
    return None


@contextmanager
def put_on(vlm: "VisionLanguage", method: str) -> Iterator[None]:
    from ...multimodal.plugins import attach, plugin
    from ...vision.adapters import ADAPTERS, adapt, adapter

    text = METHODS[method]
    put: Callable[[], Callable[[], Any]] = (
        (lambda: adapt(vlm.decoder, adapter(text)))
        if text.partition(":")[0] in ADAPTERS
        else (lambda: attach(vlm, plugin(text)))
    )
    off = put()
    vlm.tower.fewer = method.endswith(FEWER)
    try:
        yield
    finally:
        off()


def samples(learn: bool) -> list[Any]:
    """One with a picture, one with two."""
    import torch

    from ...multimodal.splice import Sample

    found = []
    for words in ([IMAGE, 5, 6, 7], [IMAGE, 8, IMAGE, 9]):
        ids = torch.tensor([1, *words])
        images = tuple(torch.randn(3, *SIZE) for _ in range(words.count(IMAGE)))
        found.append(Sample(ids, images, ids.where(ids != IMAGE, -100) if learn else None))
    return found


def answer(vlm: "VisionLanguage", where: str) -> None:
    from ...multimodal.generate import generate

    def choose(logits: "Tensor") -> "Tensor":
        if bool(logits.isnan().any()) or not bool(logits.isfinite().any(-1).all()):
            raise ArithmeticError(f"{where}: an answer is no finite number")
        return logits.argmax(-1)

    generate(vlm.eval(), samples(False), most=3, choose=choose)


def learn(vlm: "VisionLanguage", where: str) -> None:
    vlm.train()
    loss = vlm.loss(samples(True))
    loss.backward()  # type: ignore[no-untyped-call]
    learning = {n: p for n, p in vlm.named_parameters() if p.requires_grad}
    reached = {n for n, p in learning.items() if p.grad is not None and bool(p.grad.isfinite().all() & p.grad.any())}
    if not loss.isfinite() or not all(any(n.startswith(part) for n in reached) for part in ("connector.", "decoder.")):
        raise ArithmeticError(f"{where}: the loss is {loss.item()}, and gradients reach {len(reached)} parameters")


def pipelines_matrix(kinds: dict[str, str] | None = None) -> list[Cell]:
    """Every connector and method on one variant of each kind as the tower; all steps are taken."""
    from tqdm import tqdm

    from .heads import HEAD_KINDS

    cells = []
    for kind, name in tqdm((kinds or HEAD_KINDS).items(), "towers", disable=None):
        for connector in CONNECTORS:
            for method, setting in METHODS.items():
                error = attempt(name, connector, method)
                found: tuple[Any, ...] = (True,) if error is None else hindrance(error)
                cells.append(Cell(kind, f"{name}, {connector}", method, setting, *found))
    return cells


def hindrance(error: ValueError) -> tuple[Any, ...]:
    """As `refusal`; what goes wrong only in a run says so without a block's name."""
    from ...vision.adapters import AdapterError
    from ...vision.plugins import SeamError

    known = isinstance(error, SeamError | AdapterError)
    return refusal(error) if known else (False, None, None, str(error).partition(": ")[0])


def pipelines_section() -> str:
    """Of the page."""
    cells = pipelines_matrix()
    settings = ", ".join(f"`{s}`" for s in dict.fromkeys(c.setting for c in cells))
    return f"{PIPELINES_INTRODUCTION}\nTried as {settings}.\n\n{grid(cells, 'tower', 'variant, connector')}"
