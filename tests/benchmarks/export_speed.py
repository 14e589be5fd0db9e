"""Images a second of one variant of every family: the network here, folded and in eager float32, and its ONNX file in
onnxruntime, on as many threads; short blocks that alternate in one process.

    python tests/benchmarks/export_speed.py [--batch 8] [--seconds 10] [--threads N] [NAME …]
    python tests/benchmarks/export_speed.py --write      also writes the table into docs/export.md
"""

import argparse
import tempfile
from pathlib import Path

import onnxruntime
import torch

from patchloom.train.export.command import programmed
from patchloom.train.export.model import portable
from patchloom.train.measure import Case as Circumstances
from patchloom.train.measure import Spread, alternate, circumstances, warm
from patchloom.train.tables import table, write_whole
from patchloom.vision.families import FAMILIES
from patchloom.vision.zoo import create_model

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
BEGIN, END = "<!-- speed: export_speed.py --write -->", "<!-- end -->"
HEADER = ("family", "variant", "images/s here", "onnxruntime", "ratio", "quartiles")


def smallest(family: str) -> str:
    """The listed variant with the fewest channels times blocks that takes 224 pixels, or the first."""
    variants = {n: v for n, v in FAMILIES[family].VARIANTS.items() if v.listed}
    at_224 = {n: v for n, v in variants.items() if v.size == (224, 224)} or variants
    return min(at_224, key=lambda n: sum(s.dim**2 * s.depth for s in at_224[n].stages))


def row(family: str, name: str, args: argparse.Namespace, folder: Path) -> tuple[str, ...]:
    network = portable(create_model(name).eval(), name, folded=True)
    program, _ = programmed(network, name, False, args.batch)
    onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    onnx.save(folder / "net.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(str(folder / "net.onnx"), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    (x,) = network.example((args.batch, *network.size))

    def here() -> None:
        with torch.inference_mode():
            network.model(x)

    def there() -> None:
        session.run(None, {given.name: x.numpy()})

    for step in (here, there):
        warm(step, "cpu")
    rounds = alternate((here, there), seconds=args.seconds)
    ours, theirs = (Spread.of([args.batch / t for t in column]) for column in zip(*rounds, strict=True))
    ratio = Spread.of([a / b for a, b in rounds])
    return (family, name, f"{ours.median:.1f}", f"{theirs.median:.1f}", f"{ratio.median:.2f}",
            f"{ratio.low:.2f} … {ratio.high:.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="these variants, instead of one of every family")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    wanted = [("", n) for n in args.names] or [(family, smallest(family)) for family in FAMILIES]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for family, name in wanted:
            rows.append(row(family, name, args, Path(folder)))
            print("  ".join(rows[-1]), flush=True)
    print(table(HEADER, rows, right=HEADER[2:]))
    at = circumstances(Circumstances(args.batch))
    said = (
        f"Batch {args.batch}, float32, folded; {at['processor']}, {at['threads']} threads, torch {at['torch']}, "
        f"onnxruntime {onnxruntime.__version__}. Ratio: images/s of the file over those of the network, by rounds."
    )
    print(said)
    if args.write:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        drawn = "\n".join("| " + " | ".join(r) + " |" for r in (HEADER, ["---"] * len(HEADER), *rows))
        write_whole(PAGE, f"{before}{BEGIN}\n\n{said}\n\n{drawn}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
