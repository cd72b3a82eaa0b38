"""Every option, documented where it is declared: meaning, source, closed range."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints


def option(
    doc: str,
    source: str,
    low: float = 0,
    high: float = math.inf,
    choices: tuple[str, ...] = (),
    before: Any = None,
) -> Any:
    """An option without a default: what it does, who says so, its closed range.

    `before`: what checkpoints were made with that are older than the option.
    """
    return field(
        metadata={
            "doc": doc,
            "source": source,
            "low": low,
            "high": high,
            "choices": choices,
            "before": before,
        }
    )


@dataclass(frozen=True)
class Data:
    source: str = option(
        "digits, or what --data-root must hold; auto takes whichever of the others is there",
        "torchvision's CIFAR10 and CIFAR100; folder: train/<class>/ and test/<class>/",
        choices=("digits", "auto", "cifar10", "cifar100", "folder"),
    )
    split_seed: int = option(
        "seed of split and subset; one for all seeds of a study", "ours", high=2**32 - 1
    )
    validation: int = option("images held out of the training part, to select by", "ours", low=1)
    train_images: int = option("training images, a stratified subset; 0 takes all", "ours")
    test_images: int = option("test images, a stratified subset; 0 takes all", "ours")


@dataclass(frozen=True)
class Model:
    widths: tuple[int, ...] = option(
        "channels of each residual stage, every one after the first halving the image",
        "ResNet-18 64 to 512, ResNet-20 16 to 64, He et al. 2016",
        low=1,
        high=2**16,
    )
    blocks: tuple[int, ...] = option(
        "basic blocks of each residual stage",
        "ResNet-18 2,2,2,2; ResNet-20 3,3,3",
        low=1,
        high=2**16,
    )
    normalise: bool = option(
        "standardise each channel inside the network, by the training part's mean and deviation",
        "RoCL, HYDRA: no",
    )


@dataclass(frozen=True)
class Views:
    crop: float = option(
        "smallest area of a random resized crop, as a fraction; 1 crops nothing",
        "RoCL: torchvision's .08",
        low=0.01,
        high=1,
    )
    flip: float = option("probability of a horizontal flip", "RoCL .5", high=1)
    rotation: float = option("largest rotation of a view, radians", "ours, for digits")
    shift: float = option("largest shift of a view, pixels", "ours, for digits")
    scale: float = option("largest relative change of size", "ours, for digits", high=0.9)
    gamma: float = option("largest |log γ| of the gamma curve", "ours, for digits")
    brightness: float = option("largest relative change of brightness", "RoCL .4", high=1)
    contrast: float = option("largest relative change of contrast", "RoCL .4", high=1)
    saturation: float = option("largest relative change of saturation", "RoCL .4", high=1)
    hue: float = option("largest turn of the hue, as a fraction of the circle", "RoCL .1", high=0.5)
    jitter: float = option("probability that brightness to hue change", "RoCL .8", high=1)
    grayscale: float = option("probability of a grey view", "RoCL .2", high=1)
    anneal: int = option(
        "epochs after which the views grow weaker by a step, down to none at the end; 0 keeps them",
        "DynACL, Luo et al. 2023: 50 of 1000",
    )


@dataclass(frozen=True)
class Augment:
    pad: int = option(
        "pixels of padding before a random crop in supervised stages", "HYDRA 4", high=64
    )
    flip: float = option("probability of a horizontal flip there", "HYDRA .5", high=1)


@dataclass(frozen=True)
class Optimisation:
    epochs: int = option(
        "passes over the training part", "RoCL 1000, linear 150; HYDRA 100, 20, 100", low=1
    )
    batch_size: int = option("images a step", "RoCL 512, linear 1024; HYDRA 128", low=2)
    lr: float = option("peak learning rate", "RoCL 1.5, linear .1; HYDRA .1, .1, .01")
    momentum: float = option("SGD momentum", "RoCL, HYDRA .9", high=1)
    weight_decay: float = option(
        "SGD weight decay", "RoCL 1e-6, linear 5e-4; HYDRA 1e-4; Pang et al. 2021: 5e-4"
    )
    warmup: float = option(
        "fraction of the steps in which the rate rises linearly", "RoCL: 10 epochs", high=1
    )
    schedule: str = option(
        "after the warm-up: half a cosine to 0 by step, or ÷10 at each milestone",
        "RoCL, HYDRA cosine; RoCL's linear evaluation milestones",
        choices=("cosine", "milestones"),
    )
    milestones: tuple[float, ...] = option(
        "fractions of the steps at which the rate is divided by 10",
        "RoCL's linear evaluation: 30, 50, 100 of 150 epochs",
        high=1,
    )


@dataclass(frozen=True)
class Pretrain(Optimisation):
    optimizer: str = option(
        "plain SGD, or LARS over it", "RoCL lars; the study sgd", choices=("sgd", "lars")
    )
    trust: float = option("trust coefficient of LARS", "You et al. 2017, RoCL .001", low=1e-6)
    adversarial: bool = option(
        "RoCL's three views; without it plain contrastive learning of two", "RoCL; SimCLR"
    )
    temperature: float = option("τ of NT-Xent", "RoCL .5", low=1e-3)
    regulariser: float = option("λ, divides the 2-view loss", "RoCL 256", low=1e-3)
    projector_hidden: int = option("hidden units of the projector", "RoCL 2048", low=1)
    projector_out: int = option("outputs of the projector", "RoCL 128", low=1)
    epsilon: float = option("L∞ radius of the instance-wise attack", "RoCL .0314", high=1)
    alpha: float = option("step of the instance-wise attack", "RoCL .007", high=1)
    steps: int = option("steps of the instance-wise attack", "RoCL 7")


@dataclass(frozen=True)
class Linear(Optimisation):
    robust: bool = option("train the head on PGD images: r-LE instead of LE", "RoCL, sec. 4")
    finetune: bool = option("train the encoder too, in train mode", "RoCL --finetune")
    contrastive: bool = option("add NT-Xent of two clean views; needs finetune", "RoCL --ss")


@dataclass(frozen=True)
class Adversary:
    epsilon: float = option("L∞ radius of the training attack", "HYDRA 8/255", high=1)
    alpha: float = option("step of the training attack", "HYDRA .0078", high=1)
    steps: int = option("steps of the training attack", "HYDRA, RoCL's r-LE 10")
    start: float = option("standard deviation of TRADES' Gaussian start", "TRADES .001")
    beta: float = option("β, weight of the robust term of TRADES", "TRADES, HYDRA 6")
    validation_steps: int = option(
        "steps of the PGD (ε and α as above) that measures the validation part each epoch", "ours"
    )


@dataclass(frozen=True)
class Supervised(Optimisation):
    trainer: str = option(
        "loss: TRADES; cross-entropy on PGD images; or on clean images",
        "Zhang et al. 2019; Madry et al. 2018; HYDRA --trainer base",
        choices=("trades", "pgd", "plain"),
    )
    awp: float = option(
        "γ, relative size of the adversarial weight perturbation; 0 switches it off",
        "Wu et al. 2020: .005 for TRADES, .01 for PGD",
        high=1,
    )
    awp_start: float = option("fraction of the epochs before it begins", "Wu et al. 2020", high=1)
    select: str = option(
        "which epoch is kept: the last, or the one best under PGD on the validation part",
        "Rice et al. 2020; HYDRA and the study pick on test",
        choices=("last", "best"),
    )


@dataclass(frozen=True)
class Averaged(Supervised):
    ema: float = option(
        "decay by step of the averaged weights that are kept; 0 keeps the last ones",
        "Izmailov et al. 2018; Rebuffi et al. 2021: .995",
        high=0.99999,
    )


@dataclass(frozen=True)
class Prune:
    budget: str = option(
        "how the kept weights spread over the layers",
        "uniform: HYDRA; erk: Evci et al. 2020; lamp: Lee et al. 2021; learned: starts from lamp, "
        "then scores compete across layers (as HARP learns its budgets, Zhao & Wressnegger 2023)",
        choices=("uniform", "erk", "lamp", "learned"),
    )
    floor: int = option(
        "weights that each output channel keeps at least", "ours: without it 99 % is a lottery"
    )


@dataclass(frozen=True)
class Compute:
    attack: str = option(
        "precision of the attacks that make training images; auto: bf16 on a GPU, fp32 elsewhere",
        "ours; measured and reported attacks are always fp32",
        choices=("auto", "fp32", "bf16"),
    )
    training: str = option(
        "precision of the passes that train: bf16 is autocast; auto: bf16 on a GPU, fp32 elsewhere",
        "torch.amp; weights, scores and optimiser are always fp32",
        choices=("auto", "fp32", "bf16"),
        before="fp32",
    )


@dataclass(frozen=True)
class Evaluate:
    attacks: tuple[str, ...] = option(
        "what to run besides clean accuracy; transfer runs when --surrogate is given",
        "RoCL, HYDRA: pgd",
        choices=("pgd", "l2", "l1", "square", "autoattack"),
    )
    batch_size: int = option("images attacked at a time", "ours; part of the random draws", low=1)
    epsilon: float = option("L∞ radius of the tables", "RoCL, HYDRA 8/255", high=1)
    epsilon_large: float = option("second L∞ radius of PGD", "RoCL 16/255", high=1)
    pgd_steps: tuple[int, ...] = option(
        "steps of each PGD, α = ε/10, random start", "HYDRA 10, RoCL 20, PGD-50", low=1
    )
    pgd_restarts: tuple[int, ...] = option(
        "restarts of each PGD", "PGD-50-10, Wong et al. 2020", low=1
    )
    l2_epsilon: float = option("radius of the unseen L2 APGD", "RoCL .25; RobustBench .5")
    l1_epsilon: float = option("radius of the unseen L1 APGD", "RoCL 7.84; Croce & Hein 2021: 12")
    # APGD for L1 goes through three radii, each of which needs a step.
    norm_steps: int = option(
        "steps of each restart of the L2 and L1 APGD", "AutoAttack 100; RoCL's PGD 20", low=3
    )
    square_queries: int = option("queries of Square alone", "Andriushchenko et al. 2020", low=1)
    heavy_images: int = option(
        "how many test images, a random subset by split_seed, Square and AutoAttack get; 0: all",
        "RobustBench: all",
    )
    transfer_alpha: float = option("step of the transfer attack", "the study: 2/255", high=1)
    transfer_steps: int = option("steps of the transfer attack", "the study: 10", low=1)


@dataclass(frozen=True)
class Config:
    """One preset with its overrides; `asdict` of it is what a checkpoint stores."""

    data: Data
    model: Model
    views: Views
    augment: Augment
    pretrain: Pretrain
    linear: Linear
    adversary: Adversary
    train: Averaged
    prune: Prune
    score: Supervised
    finetune: Averaged
    compute: Compute
    evaluate: Evaluate


# The sections that a stage reads. Other keys are refused there: they would change nothing except
# the record of how the network came about.
SECTIONS = {
    "pretrain": ("data", "model", "views", "pretrain", "compute"),
    "linear": ("augment", "views", "adversary", "linear", "compute"),
    "train": ("data", "model", "augment", "adversary", "train", "compute"),
    "score": ("augment", "adversary", "prune", "score", "compute"),
    "finetune": ("augment", "adversary", "prune", "finetune", "compute"),
    "evaluate": ("evaluate",),
    "export": (),
}


def explain(stage: str) -> Iterator[str]:
    """One line for each option that `stage` reads: key, meaning, source."""
    kinds = get_type_hints(Config)
    for section in SECTIONS[stage]:
        for f in fields(kinds[section]):
            yield f"  {section + '.' + f.name:<26} {f.metadata['doc']} [{f.metadata['source']}]"
