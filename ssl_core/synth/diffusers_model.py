"""A diffusers pipeline that lies on this machine, asked by the name of the class.

``pip install diffusers transformers``; nothing is downloaded. The pipeline's licence is the user's
to read: many forbid some uses, or the training of other models on what they draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ..config import Section
from ..errors import HeadwaterError
from ..progress import Reporter
from ._pool import Made, Pool, Wanted


class Options(Section):
    """Which model, and what it is asked."""

    model: str = ""  # a folder that diffusers can load, or a name in its local cache
    prompt: str = "a photo of {label}"
    words: dict[str, str] = Field(default={})  # class -> what to say instead of its name
    steps: int = Field(default=20, ge=1)
    guidance: float = Field(default=5.0, ge=0)
    side: int = Field(default=512, ge=8)
    batch_size: int = Field(default=4, ge=1)


def pipeline(options: Options) -> Any:
    """The loaded pipeline, on the GPU if there is one.

    Raises:
        HeadwaterError: no model named, diffusers not installed, or no such model here.
    """
    where = "synthesise.options.diffusers_model.model"
    if not options.model:
        raise HeadwaterError(where, "is empty", "name a folder with a diffusers pipeline")
    try:
        import diffusers
        import torch
    except ImportError:
        fix = "pip install diffusers transformers"
        raise HeadwaterError("generator 'diffusers_model'", "needs diffusers", fix) from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.float16 if device == "cuda" else torch.float32
    try:
        # Safetensors only: other weights are pickles, which run code.
        found: Any = diffusers.DiffusionPipeline.from_pretrained(
            options.model, local_files_only=True, use_safetensors=True, torch_dtype=kind
        )
    except (OSError, ValueError) as error:
        fix = "download it first, with its licence; only safetensors are read"
        raise HeadwaterError(
            f"{where} = {options.model}", f"cannot be loaded ({error})", fix
        ) from None
    found.set_progress_bar_config(disable=True)
    return found.to(device)


def prompt(options: Options, name: str) -> str:
    """What is asked for a class; folders in its name become words."""
    plain = name.replace("/", " ").replace("_", " ").replace("-", " ")
    return options.prompt.format(label=options.words.get(name, plain))


def generate(
    pool: Pool, wanted: Wanted, options: Options, seed: int, work: Path, report: Reporter
) -> Iterator[Made]:
    """``wanted[label]`` images of each class.

    Raises:
        HeadwaterError: as :func:`pipeline`.
    """
    import torch

    pipe = pipeline(options)
    with report.bar(sum(wanted.values()), "img") as advance:
        for label, count in wanted.items():
            generator = torch.Generator("cpu").manual_seed(seed * 100_003 + label)
            for first in range(0, count, options.batch_size):
                number = min(options.batch_size, count - first)
                drawn = pipe(
                    [prompt(options, pool.classes[label])] * number,
                    num_inference_steps=options.steps,
                    guidance_scale=options.guidance,
                    height=options.side,
                    width=options.side,
                    generator=generator,
                ).images
                for image in drawn:
                    yield Made(np.asarray(image.convert("RGB")), label)
                advance(number)
