"""torch.compile where it wins: the blocks of transformers and the stages of CNNs, in place.

Blocks and not the whole model: all blocks of a stack share what is compiled once, masks and
packs whose making depends on values stay outside, and what a module is called stays as it is:
``nn.Module.compile`` changes how it is called, not its parameters' names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .errors import HeadwaterError
from .models import Encoder

BACKEND = "inductor"
PAYS = 2000  # steps: on an H100 a ViT-S pays after 250, a ResNet-50 after 2,300 (results/gpu.json)
VARIANTS = 64  # of sizes, modes and kinds of module that may be compiled


def wanted(choice: str, parallel: str, device: torch.device, steps: int) -> bool:
    """Whether to compile; ``auto``: a run long enough to pay for it, on a GPU with Triton, where a
    step is bound by small kernels.

    Raises:
        HeadwaterError: asked for together with FSDP, whose hooks it is not tested with.
    """
    if choice == "on" and parallel == "fsdp":
        rule = "does not go with pretrain.parallel: fsdp"
        raise HeadwaterError("pretrain.compile on", rule, "set pretrain.compile: off")
    if choice != "auto":
        return choice == "on"
    if device.type != "cuda" or parallel == "fsdp" or steps < PAYS:
        return False
    from torch.utils._triton import has_triton

    return bool(has_triton())


def apply(method: nn.Module, device: torch.device) -> None:
    """Compile what of ``method`` takes most of a step; the work is done when it is first called.

    Raises:
        HeadwaterError: the compiler does not work here.
    """
    require_compiler(device)
    # All modules count as one function, and beyond the limit they silently run uncompiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for part in parts(method):
        part.compile(backend=BACKEND)


def parts(method: nn.Module) -> list[nn.Module]:
    """Blocks of all transformers (encoder, teacher, decoder); children of CNNs.

    The last block of a stack stays as it is: some methods ask it for other rows in every step.
    """
    encoders = [m for m in method.modules() if isinstance(m, Encoder) and not m.is_vit]
    inside = {m for encoder in encoders for m in encoder.modules()}
    stacks = [
        module
        for name, module in method.named_modules()
        if name.rpartition(".")[2] == "blocks" and module not in inside
    ]
    found = [block for stack in stacks for block in list(stack.children())[:-1]]
    return found + [child for encoder in encoders for child in encoder.model.children()]


def require_compiler(device: torch.device) -> None:
    """Compile two operations and their gradient: now, not hours into a run, must it fail.

    Raises:
        HeadwaterError: it failed.
    """
    from torch._inductor.utils import fresh_cache

    def small(x: Tensor) -> Tensor:
        return (x.sin() + 1).sum()

    x = torch.ones(64, device=device, requires_grad=True)
    try:
        with fresh_cache():  # else what was compiled once would hide that it no longer can be
            torch.compile(small, backend=BACKEND)(x).backward()
    except Exception as error:  # each backend and each missing tool has its own
        said = str(error).strip().split("\n")[0]
        raise HeadwaterError(
            f"pretrain.compile on {device.type}",
            f"found no compiler that works ({type(error).__name__}: {said})",
            "install a C++ compiler (CPU) or Triton (GPU), or set pretrain.compile: off",
        ) from error
