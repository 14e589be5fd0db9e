"""What is published for VMamba (arXiv 2401.10166): releases of the repository, the state under `model`."""

from ..published import Weights

_HOST = "https://github.com/MzeroMiko/VMamba/releases/download"


def _row(release: str, file: str, top1: float) -> Weights:
    return Weights("in1k", f"{_HOST}/%23{release}/{file}.pth", "mit", wrapper="model", metrics={"top1": top1})


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    "vmamba_vanilla_tiny": (_row("v0cls", "vssmtiny_dp01_ckpt_epoch_292", 82.2),),
    "vmamba_vanilla_small": (_row("v0cls", "vssmsmall_dp03_ckpt_epoch_238", 83.5),),
    "vmamba_vanilla_base": (_row("v0cls", "vssmbase_dp06_ckpt_epoch_241", 83.7),),
    "vmamba_tiny_s2l5": (_row("v2cls", "vssm_tiny_0230_ckpt_epoch_262", 82.5),),
    "vmamba_small_s2l15": (_row("v2cls", "vssm_small_0229_ckpt_epoch_222", 83.6),),
    "vmamba_base_s2l15": (_row("v2cls", "vssm_base_0229_ckpt_epoch_237", 83.9),),
    "vmamba_tiny_s1l8": (_row("v2cls", "vssm1_tiny_0230s_ckpt_epoch_264", 82.6),),
    "vmamba_small_s1l20": (_row("v2cls", "vssm1_small_0229s_ckpt_epoch_240", 83.3),),
    "vmamba_base_s1l20": (_row("v2cls", "vssm1_base_0229s_ckpt_epoch_225", 83.8),),
}
