"""patchloom chat: questions about pictures, answered in the terminal word by word."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..saved.judge import natural, positive

if TYPE_CHECKING:
    from ..saved.talker import Talker

EXAMPLES = """examples:
  patchloom chat RUN --image x.jpg                               line by line; /new forgets, /image FILE shows another
  patchloom chat RUN --image x.jpg --question "what colour is the star?"
  patchloom chat RUN --image x.jpg --question "how many circles are there?" --json
  patchloom chat llava-1.5-7b-hf --image a.jpg --image b.jpg --plugin fastv:k=2,r=0.5 --precision bfloat16"""
LEAVE = ("/quit", "/exit", "/q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run folder, a checkpoint, or a folder of LLaVA-1.5's kind of transformers")
    add("--image", action="append", default=[], metavar="FILE", help="what is talked about; may be repeated")
    add("--question", metavar="TEXT", help="ask this and end (else standard input is read, a question a line)")
    add("--system", metavar="TEXT", help="what is said before the first question")
    add("--most", type=positive, metavar="N", help="tokens of an answer, at most (what it was trained for)")
    add("--temperature", type=float, metavar="T", help="draw words instead of taking the likeliest")
    add("--top-p", type=float, default=1.0, metavar="P", help="draw among the likeliest that make up P (1)")
    add("--top-k", type=positive, metavar="K", help="draw among the K likeliest")
    add("--seed", type=natural, default=0, metavar="N", help="of what is drawn (0)")
    add("--plugin", metavar="SPEC", help="of the language model, e.g. fastv:k=2,r=0.5")
    add("--tokens", metavar="SPEC", help="a token plugin of the tower in place of its own, e.g. tome:r=8, or none")
    add("--weights", choices=("ema", "raw"), default="ema", help="the average of the weights or themselves (ema)")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="of what is computed (float32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto: a GPU where there is one)")
    add("--json", action="store_true", help="print one JSON object; wants --question")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    if args.json and args.question is None:
        args.parser.error("--json answers one question: give it by --question")
    if args.temperature is None and (args.top_p != 1.0 or args.top_k is not None):
        args.parser.error("--top-p and --top-k draw words: they want --temperature")
    import torch

    from ...data.read import read_image
    from ...multimodal.generate import Greedy, Sampled

    pictures = [read_image(file) for file in args.image]
    choose = Greedy() if args.temperature is None else Sampled(args.temperature, args.top_k, args.top_p, args.seed)
    from ..saved.talker import load_talker

    talker = load_talker(
        args.model, device=args.device, ema=args.weights == "ema", precision=getattr(torch, args.precision)
    )
    plug(talker, args)
    chat = Chat(talker, args, pictures, choose)
    if args.question is not None:
        return chat.once(args.question)
    return chat.loop()


def plug(talker: "Talker", args: argparse.Namespace) -> None:
    if args.plugin:
        from ...multimodal import plugins

        plugins.attach(talker.vlm, plugins.plugin(args.plugin))
    if args.tokens:
        from ..saved.judge import set_tokens

        set_tokens(talker.vlm.tower, args.tokens, args.model)


class Chat:
    """What was said so far, and about which pictures."""

    def __init__(self, talker: "Talker", args: argparse.Namespace, pictures: list[Any], choose: Any):
        self.talker, self.args, self.pictures, self.choose = talker, args, pictures, choose
        self.begin()

    def begin(self) -> None:
        system = self.args.system
        self.said: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def pieces(self, question: str) -> Iterator[str]:
        """The answer as it comes; once it is whole both are remembered."""
        asked = [*self.said, {"role": "user", "content": question}]
        text = ""
        for piece in self.talker.stream(asked, self.pictures, most=self.args.most, choose=self.choose):
            piece = piece if text else piece.lstrip()
            text += piece
            if piece:
                yield piece
        self.said = [*asked, {"role": "assistant", "content": text.strip()}]

    def once(self, question: str) -> int:
        begun = time.perf_counter()
        if not self.args.json:
            self.show(question)
            return 0
        answer = "".join(self.pieces(question)).strip()
        words = len(self.talker.tokenizer(answer, add_special_tokens=False)["input_ids"])
        said = {
            "model": self.args.model, "images": self.args.image, "question": question, "answer": answer,
            "tokens": words, "seconds": round(time.perf_counter() - begun, 3),
        }  # fmt: skip
        print(json.dumps(said, indent=1, ensure_ascii=False))
        return 0

    def show(self, question: str) -> None:
        for piece in self.pieces(question):
            print(piece, end="", flush=True)
        print(flush=True)

    def loop(self) -> int:
        """Questions from standard input until it ends; what cannot be answered is said, and the talk goes on."""
        asks = sys.stdin.isatty()
        while True:
            print("> " * asks, end="", flush=True)
            line = sys.stdin.readline()
            if not line or line.strip() in LEAVE:
                return 0
            try:
                self.take(line.strip())
            except (ValueError, OSError) as error:
                if not asks:
                    raise
                print(f"patchloom: {' '.join(str(error).split())}", file=sys.stderr)

    def take(self, line: str) -> None:
        """One line: a question, /new, or /image FILE."""
        from ...data.read import read_image

        word, _, rest = line.partition(" ")
        if word == "/new":
            self.begin()
        elif word == "/image":
            self.pictures = [read_image(Path(file)) for file in shlex.split(rest)]
            self.begin()
        elif line:
            self.show(line)
