"""Tokens a second of a vision-language model against transformers' LLaVA, and what plugins make of it.

    python tests/benchmarks/vlm_speed.py [--threads 2] [--rounds 5] [--words 32] [--small]

Both run the same random weights on the same image and prompt, 1,024 image tokens, alternating; figures are medians of
the rounds. Work of a layer by the facts' count: 4 n d² + 2 n² d + 3 n d m (LLaMA's MLP has three products), n as found
in every layer that runs. Packing: packing_speed.py; what plugins do to accuracy: vlm_plugins.py, damro_distractor.py.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from patchloom.multimodal.generate import generate, steps
from patchloom.multimodal.llava import open_llava
from patchloom.multimodal.plugins import attached, plugin
from patchloom.multimodal.splice import Sample
from patchloom.multimodal.vlm import VisionLanguage

IMAGE, PIXELS, PATCH = 999, 256, 8  # 32 x 32 = 1,024 image tokens


def config(small: bool) -> LlavaConfig:
    width, depth = (128, 4) if small else (512, 12)
    vision = CLIPVisionConfig(
        hidden_size=width // 2, intermediate_size=2 * width, num_hidden_layers=4, num_attention_heads=4,
        image_size=PIXELS, patch_size=PATCH,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=depth,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=4096, pad_token_id=0,
    )  # fmt: skip
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)


def alternating(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each, one after the other in every round, after one to warm up."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def first_word(vlm: VisionLanguage, sample: Sample) -> Tensor:
    return next(steps(vlm, [sample], most=1))


def decoder_alone(vlm: VisionLanguage, sample: Sample) -> Callable[[], object]:
    """The decoder's part of a prefill."""
    with torch.inference_mode():
        stream = vlm.splice([sample], side="left")

    @torch.inference_mode()
    def run() -> object:
        return vlm.decoder(stream, vlm.decoder.cache(1))

    return run


def work(n: int, d: int, m: int) -> float:
    return 4 * n * d * d + 2 * n * n * d + 3 * n * d * m


def lengths(vlm: VisionLanguage, run: Callable[[], object]) -> list[int]:
    """How many tokens went through each layer that ran, a plugin's own layers too."""
    kind, found = type(vlm.decoder.layers[0]), []
    layers = [m for m in vlm.decoder.modules() if isinstance(m, kind)]
    hooks = [m.register_forward_pre_hook(lambda _m, given: found.append(given[0].shape[1])) for m in layers]
    run()
    for hook in hooks:
        hook.remove()
    return found


def total(vlm: VisionLanguage, run: Callable[[], object]) -> float:
    """Multiply-accumulates of the layers."""
    text = vlm.decoder.lm.config  # type: ignore[union-attr]
    return sum(work(n, text.hidden_size, text.intermediate_size) for n in lengths(vlm, run))  # type: ignore[union-attr]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--words", type=int, default=32)
    parser.add_argument("--small", action="store_true", help="a few layers of 128 channels: does it run at all?")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    theirs = LlavaForConditionalGeneration(config(args.small)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = open_llava(Path(folder))
    image = torch.randn(1, 3, PIXELS, PIXELS)
    words = torch.randint(3, 900, (40,))
    ids = torch.cat([words[:8], torch.full(((PIXELS // PATCH) ** 2,), IMAGE), words[8:]])
    sample = Sample(torch.cat([words[:8], torch.tensor([IMAGE]), words[8:]]), (image[0],))

    @torch.inference_mode()
    def their_words(count: int) -> Tensor:
        given = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], "pixel_values": image}
        out = theirs.generate(**given, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return out[0, len(ids) :]

    same = their_words(args.words).tolist() == generate(ours, [sample], most=args.words)[0].tolist()
    print(f"{args.threads} threads, {len(ids)} tokens of prompt, {args.words} words; the same words: {same}")
    found = alternating(
        {
            "theirs, 1 word": lambda: their_words(1),
            "ours, 1 word": lambda: first_word(ours, sample),
            "theirs, all": lambda: their_words(args.words),
            "ours, all": lambda: generate(ours, [sample], most=args.words),
        },
        args.rounds,
    )
    for who in ("theirs", "ours"):
        first, every = found[f"{who}, 1 word"], found[f"{who}, all"]
        print(f"{who}: first word {first:.3f} s, then {(args.words - 1) / (every - first):.1f} tokens/s")
    prefills(ours, sample, args.rounds, 2 if not args.small else 1)
    answers(ours, sample, args.rounds, args.words)


def prefills(vlm: VisionLanguage, sample: Sample, rounds: int, k: int) -> None:
    """The decoder's part, with half of the image tokens gone and with late fusion, against what their work says."""
    plain = decoder_alone(vlm, sample)
    whole = total(vlm, plain)
    for text in (f"fastv:k={k},r=0.5", f"fastv:k={k},r=0.75", f"visual_depth:k={k}", f"dpvr:k={k}", "dpvr:k=-3"):

        def reduced(text: str = text) -> object:
            with attached(vlm, plugin(text)):
                return plain()

        times = alternating({"plain": plain, "plugin": reduced}, rounds)
        with attached(vlm, plugin(text)):
            due = whole / total(vlm, plain)
        gain = times["plain"] / times["plugin"]
        print(f"{text}: prefill {times['plain']:.3f} -> {times['plugin']:.3f} s, {gain:.2f} times; its work says "
              f"{due:.2f} ({gain / due:.2f} of it)")  # fmt: skip


def answers(vlm: VisionLanguage, sample: Sample, rounds: int, words: int) -> None:
    """The whole pipeline: the first word, and all of them. Token merging in the tower hands on fewer tokens."""

    def run(text: str, most: int) -> Callable[[], object]:
        def answer() -> object:
            if not text:
                return generate(vlm, [sample], most=most)
            with attached(vlm, plugin(text)):
                vlm.tower.fewer = text.startswith("tome")
                made = generate(vlm, [sample], most=most)
                vlm.tower.fewer = False
                return made

        return answer

    settings = (
        "",
        "tome:r=170",
        "damro:top=10",
        "heavy_hitters:budget=256,recent=128",
        "keyformer:budget=256,recent=128",
    )
    first = alternating({text: run(text, 1) for text in settings}, rounds)
    every = alternating({text: run(text, words) for text in settings}, rounds)
    for text in settings:
        print(f"{text or 'plain'}: first word {first[text]:.3f} s, {words} words {every[text]:.3f} s")


if __name__ == "__main__":
    main()
