"""What packing captions into rows gains a training step of the language model, against the padding that it removes.

    python tests/benchmarks/packing_speed.py FILE.jsonl [--threads 2] [--rounds 5] [--batch 32] [--limit 128] [--small]

The lengths are those of real captions (../shared/data/flickr8k_mini/captions_train.jsonl) in tokens of a tokeniser that
is learned from them, behind 16 tokens of an image each. Padded: the captions in the order of the file, `batch` a step;
packed: the same captions of each step in as few rows of `limit` tokens as `splice.pack` finds. A step is the decoder's
forward and backward and the loss, on image tokens made before. Rounds alternate; figures are medians over them of all
steps together.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaConfig

from patchloom.multimodal.decoder import Decoder, decoder
from patchloom.multimodal.splice import Sample, pack, splice
from patchloom.multimodal.stream import IGNORED, Stream
from patchloom.multimodal.words import learned

IMAGE, TOKENS = 3, 16  # the placeholder's id, and how many tokens an image has


def samples_of(captions: Sequence[str], vocabulary: int) -> list[Sample]:
    tokenizer = learned(captions, vocabulary)
    found = []
    for caption in captions:
        ids = torch.tensor([1, IMAGE, *tokenizer(caption, add_special_tokens=False)["input_ids"], 2])
        found.append(Sample(ids, (torch.zeros(0),), ids.where(ids != IMAGE, IGNORED)))
    return found


def step(lm: Decoder, stream: Stream) -> float:
    lm.zero_grad()
    start = time.perf_counter()
    out = lm(stream)
    assert out.target is not None
    learned = out.target != IGNORED
    F.cross_entropy(lm.logits(out.x[learned]), out.target[learned]).backward()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captions", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--small", action="store_true", help="a few layers of 64 channels: does it run at all?")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    width, depth = (64, 2) if args.small else (384, 6)
    lm = decoder(LlamaConfig(
        vocab_size=2000, hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=depth,
        num_attention_heads=6 if width % 6 == 0 else 4, max_position_embeddings=1024, pad_token_id=0,
    )).train()  # fmt: skip
    lines = [json.loads(line) for line in args.captions.read_text().splitlines()]
    samples = samples_of([text for line in lines for text in line["captions"]], 2000)
    lengths = [len(s.ids) - 1 + TOKENS for s in samples]
    streams: dict[str, list[Stream]] = {"padded": [], "packed": []}
    with torch.no_grad():
        for i in range(0, len(samples), args.batch):
            some, image = samples[i : i + args.batch], torch.randn(TOKENS, width)
            for form, rows in (("padded", None), ("packed", pack(lengths[i : i + args.batch], args.limit))):
                streams[form].append(splice(some, [[image] for _ in some], lm.embed, IMAGE, rows=rows))
    found: dict[str, list[float]] = {form: [] for form in streams}
    for i in range(args.rounds + 1):
        for form, some in streams.items():
            spent = sum(step(lm, stream) for stream in some)
            if i:
                found[form].append(spent)
    tokens = {form: sum(s.place.numel() for s in some) for form, some in streams.items()}
    times = {form: statistics.median(values) for form, values in found.items()}
    due, gain = tokens["padded"] / tokens["packed"], times["padded"] / times["packed"]
    print(f"{args.threads} threads, {len(samples)} captions of {min(lengths)} to {max(lengths)} tokens, mean "
          f"{statistics.mean(lengths):.1f}, {args.batch} a step, rows of up to {args.limit}")  # fmt: skip
    print(f"tokens {tokens['padded']} padded, {tokens['packed']} packed, {sum(lengths)} real")
    print(f"seconds {times['padded']:.3f} -> {times['packed']:.3f}: {gain:.2f} times; tokens say {due:.2f} "
          f"({gain / due:.2f} of it)")  # fmt: skip


if __name__ == "__main__":
    main()
