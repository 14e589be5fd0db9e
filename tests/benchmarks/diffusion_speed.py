"""DiT against diffusers' DiT of equal size and equal weights, on 32x32 latents: a step of sampling with guidance (one
batched pass for a class and for none) and a step of training, in turns; with --memory the peak of each. In Markdown.

`python tests/benchmarks/diffusion_speed.py [--models dit_s_2 dit_s_4] [--threads 2] [--seconds 30] [--memory]`

`--steps`: steps/s of training in bfloat16 with and without compile instead, ours alone, as on a GPU
(`--models dit_xl_2 --batch 128 --device cuda --steps`).
"""

import argparse
import json
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchloom.train.measure import Case, Spread, Step, alternate, circumstances, in_child, resident_mb, timed, warm
from patchloom.train.saved.judge import choose_device, positive
from patchloom.vision.generation.dit import DiT
from patchloom.vision.zoo import create_model

LATENT = (4, 32, 32)


class Diffusers(nn.Module):
    """diffusers' model under our signature."""

    def __init__(self, like: DiT):
        from diffusers import DiTTransformer2DModel

        super().__init__()
        shape = like.shape
        self.model = DiTTransformer2DModel(
            num_attention_heads=shape["heads"], attention_head_dim=shape["dim"] // shape["heads"], in_channels=4,
            out_channels=8, num_layers=shape["depth"], patch_size=like.backbone.stem_spec.stride, sample_size=32,
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.model(x, t, y, return_dict=False)[0]


def with_weights_of(theirs: Diffusers, ours: DiT) -> Diffusers:
    """`theirs`, which embeds time and class once a block, and spaces its frequencies otherwise than published."""
    own = theirs.model.state_dict()
    state = {n: v for n, v in own.items() if n == "pos_embed.pos_embed"}
    put = lambda name, layer: state.update({f"{name}.{k}": v for k, v in layer.state_dict().items()})  # noqa: E731
    put("pos_embed.proj", ours.backbone.stem.convolution.conv)
    put("proj_out_1", ours.final.modulation.linear)
    put("proj_out_2", ours.final.linear)
    for i, block in enumerate(ours.backbone.stages[0].blocks):
        at, layer = f"transformer_blocks.{i}", theirs.model.transformer_blocks[i]
        layer.norm1.emb.time_proj.downscale_freq_shift = 0
        put(f"{at}.norm1.linear", block.modulation.linear)
        put(f"{at}.norm1.emb.timestep_embedder.linear_1", ours.time_embedding.fc1)
        put(f"{at}.norm1.emb.timestep_embedder.linear_2", ours.time_embedding.fc2)
        put(f"{at}.norm1.emb.class_embedder.embedding_table", ours.labels.table)
        for name, w, b in zip("qkv", block.mixer.qkv.weight.chunk(3), block.mixer.qkv.bias.chunk(3), strict=True):
            state |= {f"{at}.attn1.to_{name}.weight": w, f"{at}.attn1.to_{name}.bias": b}
        put(f"{at}.attn1.to_out.0", block.mixer.proj)
        put(f"{at}.ff.net.0.proj", block.ffn.fc1)
        put(f"{at}.ff.net.2", block.ffn.fc2)
    theirs.model.load_state_dict(state)
    return theirs


def made(name: str, whose: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    ours = create_model(name, device=device)
    with torch.no_grad():
        for p in ours.parameters():
            if not p.any():
                p.normal_(std=0.02)
    assert isinstance(ours, DiT)
    return ours if whose == "ours" else with_weights_of(Diffusers(ours).to(device), ours)


def batch(count: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(count, *LATENT, generator=g), torch.randint(1000, (count,), generator=g)
    return x.to(device), t.to(device), torch.randint(1000, (count,), generator=g).to(device)


def sampling(model: nn.Module, count: int, device: str) -> Step:
    """One evaluation with guidance for `count` images."""
    model.eval()
    x, t, y = batch(count, device)
    given = torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, torch.full_like(y, 1000)])

    def step() -> Tensor:
        with torch.inference_mode():
            cond, null = model(*given).chunk(2)
            return null + 4 * (cond - null)

    return step


def training(model: nn.Module, count: int, device: str, half: bool = False, compiled: bool = False) -> Step:
    model.train()
    forward = torch.compile(model) if compiled else model
    (x, t, y), optimizer = batch(count, device), torch.optim.AdamW(model.parameters(), 1e-4)
    target = torch.randn_like(torch.cat([x, x], 1))

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            loss = F.mse_loss(forward(x, t, y).float(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


MODES = {"sampling": sampling, "training": training}


def compared(name: str, mode: str, args: argparse.Namespace) -> str:
    device, pair = str(choose_device(args.device)), ("ours", "diffusers")
    models = [made(name, whose, device) for whose in pair]
    with torch.inference_mode():
        a, b = (m.eval()(*batch(2, device)) for m in models)
    apart = float((a - b).norm() / b.norm())
    steps = [MODES[mode](m, args.batch, device) for m in models]
    for step in steps:
        warm(step, device)
    rounds = alternate(steps, device, seconds=args.seconds)
    own, ratio = Spread.of([r[0] for r in rounds]), Spread.of([r[1] / r[0] for r in rounds])
    cells = [f"{1e3 * own.median:.1f}", f"{ratio.median:.3f} ({ratio.low:.3f} … {ratio.high:.3f})", f"{apart:.0e}"]
    if args.memory:
        peaks = [in_child(f"{name} {whose}", __file__, "--child", json.dumps([name, whose, mode, args.batch, device]))
                 for whose in pair]  # fmt: skip
        cells.append(f"{peaks[0]:.0f} / {peaks[1]:.0f} = {peaks[0] / peaks[1]:.2f}")
    return f"| {name} | {mode} | " + " | ".join(cells) + " |"


def child(words: list[Any]) -> float:
    """MiB that a model and three of its steps add at most to a process that has run a small one of the same kind."""
    name, whose, mode, count, device = words
    small = DiT(1, 32, 2, 16)
    MODES[mode](small if whose == "ours" else Diffusers(small), 1, "cpu")()
    like = create_model(name, device="meta")
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # sets the peak back to what is resident now
    before = resident_mb(peak=False)
    model = create_model(name) if whose == "ours" else Diffusers(like)
    step = MODES[mode](model.to(device), count, device)
    for _ in range(3):
        step()
    return torch.cuda.max_memory_allocated(device) / 2**20 if device != "cpu" else resident_mb(peak=True) - before


def steps_per_second(name: str, args: argparse.Namespace) -> str:
    device, cells = str(choose_device(args.device)), []
    for compiled in (False, True):
        step = training(made(name, "ours", device), args.batch, device, half=True, compiled=compiled)
        timed(step, 5, device)
        cells.append(f"{1 / timed(step, 20, device):.2f}")
    return f"| {name} | {args.batch} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["dit_s_2", "dit_s_4"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--batch", type=positive, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--seconds", type=float, default=30.0, help="at least, for each line")
    parser.add_argument("--memory", action="store_true", help="peak memory too, a child process an arm")
    parser.add_argument("--steps", action="store_true", help="steps/s of training in bfloat16, ours alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps({"peak_memory_mb": child(json.loads(args.child))}))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.steps:
        print("| model | batch | steps/s, bfloat16 | compiled |\n|---|---|---|---|")
        for name in args.models:
            print(steps_per_second(name, args), flush=True)
    else:
        more = (" peak MiB, ours / theirs |", "---|") if args.memory else ("", "")
        print(f"| model | step | ms | ratio of speed (quartiles) | apart |{more[0]}\n|---|---|---|---|---|{more[1]}")
        for name in args.models:
            for mode in args.modes:
                print(compared(name, mode, args), flush=True)
    case = Case(args.batch, None, "float32", False, False, str(choose_device(args.device)), args.threads)
    where = circumstances(case)
    print(f"\nbatch {args.batch}; " + ", ".join(f"{key} {value}" for key, value in where.items()))


if __name__ == "__main__":
    main()
