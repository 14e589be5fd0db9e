"""Does a contrastive run name what it was never shown? One command: it trains for --minutes (or takes --run RUN), and
judges beside chance.

    python tests/benchmarks/contrast_judged.py shapes --out runs/judged --minutes 20
    python tests/benchmarks/contrast_judged.py flickr8k --data ../shared/data/flickr8k_mini --out runs/judged

shapes: kinds and colours that training never had together, told from all hundred, and from each other.
flickr8k: recall at 1, 5 and 10 between held-out photographs and sentences, both ways.
Writes DIR/contrast_WHAT.json; progress goes to stderr.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECIPES = {"shapes": "shapes/clip", "flickr8k": "flickr8k/clip"}


def patchloom(*line: object) -> dict[str, Any]:
    """One command with --json; its progress is seen."""
    words = [sys.executable, "-m", "patchloom", *map(str, line), "--json"]
    print("$", " ".join(words[2:]), file=sys.stderr, flush=True)
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=RECIPES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", help="a run that is there already")
    parser.add_argument("--data", type=Path, help="flickr8k: the folder of photographs and captions_*.jsonl")
    parser.add_argument("--minutes", type=int, default=20, help="of training, at most (20)")
    parser.add_argument("--drawn", type=int, default=50, help="shapes: pictures of each held-out combination (50)")
    args = parser.parse_args()
    if args.what == "flickr8k" and args.data is None:
        parser.error("flickr8k: name its folder with --data")
    args.out.mkdir(parents=True, exist_ok=True)
    begun, trained = time.monotonic(), None
    if args.run is None:
        more = [] if args.data is None else ["--data.root", args.data]
        span = f"00:{args.minutes // 60:02}:{args.minutes % 60:02}:00"
        trained = patchloom("fit", "-c", RECIPES[args.what], *more, "--trainer.max_time", span,
                            "--trainer.default_root_dir", args.out)  # fmt: skip
        args.run = trained["run"]
    seconds = time.monotonic() - begun
    if args.what == "shapes":
        judged = patchloom("eval", "zeroshot", args.run, "--drawn", args.drawn)
    else:
        judged = patchloom(
            "eval", "retrieval", "--checkpoint", args.run, "--captions", args.data / "captions_test.jsonl"
        )
    found = {"what": args.what, "run": str(args.run), "seconds": round(seconds), "trained": trained, "judged": judged}
    (args.out / f"contrast_{args.what}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(judged, indent=1))


if __name__ == "__main__":
    main()
