"""BLEU, ROUGE-L and CIDEr of captions, as COCO's evaluation computes them (pycocoevalcap)."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .caption_words import tokenised

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")
JAVA = {"meteor": "METEOR", "spice": "SPICE"}
TOKENIZERS = ("own", "ptb")


@dataclass(frozen=True)
class Scored:
    """`overall`: the figures of the whole set, as fractions (CIDEr's scale is 10 for a perfect match); `each`: CIDEr of
    each picture."""

    overall: dict[str, float]
    each: dict[str, float]


def score(truth: Mapping[str, Sequence[str]], given: Mapping[str, str], tokenizer: str = "own") -> Scored:
    """Of the captions `given`, one a picture, against the captions people wrote of the same pictures.

    tokenizer: own (train/evaluation/caption_words.py), or ptb, COCO's own, which needs Java. Raises ValueError where
    pictures differ and ModuleNotFoundError without pycocoevalcap.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    if truth.keys() != given.keys() or not truth:
        raise ValueError(f"{len(truth):,} pictures with captions of people, {len(given):,} with one to judge: the same")
    split = {"own": tokenised, "ptb": by_java}[tokenizer]
    people = split(truth)
    judged = split({key: [given[key]] for key in truth})
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints as it goes
        bleu, _ = Bleu(4).compute_score(people, judged, verbose=0)
        rouge, _ = Rouge().compute_score(people, judged)
        cider, each = Cider().compute_score(people, judged)
    overall = dict(zip(METRICS, (*map(float, bleu), float(rouge), float(cider)), strict=True))
    return Scored(overall, dict(zip(people, map(float, each), strict=True)))


def by_java(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Stanford's tokeniser, the program itself."""
    import shutil

    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    if shutil.which("java") is None:
        raise ValueError("--tokenizer ptb: Stanford's tokeniser is a Java program, and there is no java here: install "
                         "a Java runtime, or take --tokenizer own")  # fmt: skip
    found = PTBTokenizer().tokenize({key: [{"caption": each} for each in said] for key, said in captions.items()})
    return {key: found[key] for key in captions}
