"""Named settings: published configurations as far as they are known, and what differs from our defaults.

A name says whose training it is: `as_published` and `as_released` are a paper's or its code's, `ours` takes sizes from a paper
and trains them in our way. Each preset overrides the plan ("plan"), the method ("config") and the training ("train"); --set
overrides the preset.
"""

from typing import Any

# cDAL's losses, latents, schedules and widths per data set, from its released configurations. Blocks per stage are chosen so
# that the number of parameters is about theirs: their stages have residual blocks for resampling, ours do not. What of the
# released training is not taken over stands in the table of docs/methods/cdal.md.
_RELEASED: dict[str, Any] = {
    "mse": 1.0, "dice": 0.0, "cross_entropy": 0.0, "adversarial": 0.0, "output": "tanh",
    "attention": "label", "attention_norm": "none", "discriminator_image": False,
    "recycle": 0.0, "p_terminal_timestep": 0.0, "pyramid": True, "latent_depth": 3,
    "r1": 0.1, "betas": (0.5, 0.9),  # gamma 1 every tenth step, not rescaled: 0.1 times the interval
}  # fmt: skip
_HIPPOCAMPUS: dict[str, Any] = {
    "T": 4, "steps": 4, "discriminator_every": 1,
    "widths": (32, 64, 64, 64), "encoder_blocks": 6, "blocks": 3, "attention_levels": (1,), "latent": 50,
    "latent_width": 128, "learning_rate": 1.6e-4, "discriminator_learning_rate": 1.25e-4, "r1_every": 10,
    "discriminator_widths": (128, 128, 256, 512, 512),
}  # fmt: skip
_MONUSEG: dict[str, Any] = {
    "T": 4, "steps": 4, "discriminator_every": 1,
    "widths": (64, 64, 64, 128, 128, 256, 256), "encoder_blocks": 5, "blocks": 5, "attention_levels": (4, 5),
    "latent": 100, "latent_width": 256, "learning_rate": 2e-4, "discriminator_learning_rate": 1e-4, "r1_every": 10,
    "discriminator_widths": (128, 256, 512, 512, 512, 512, 512), "attention_level": 3,
}  # fmt: skip
_CXR: dict[str, Any] = {
    "T": 2, "steps": 2, "discriminator_every": 1,
    "widths": (32, 32, 64, 64, 128, 128), "encoder_blocks": 6, "blocks": 3, "attention_levels": (4,),
    "latent": 100, "latent_width": 256, "learning_rate": 2e-4, "discriminator_learning_rate": 1e-5, "r1_every": 1,
    "discriminator_widths": (128, 256, 512, 512, 512, 512, 512),
}  # fmt: skip

# Both versions of MedSegDiff, as published: noise prediction over 1000 timesteps, squared error alone, 100 steps. How long
# to train is in neither paper; the released code's readme says about 100,000 steps.
_PUBLISHED: dict[str, Any] = {
    "T": 1000, "schedule": "linear", "input_scale": 1.0, "predict": "eps", "steps": 100, "sampler": "ancestral",
    "noise": 1.0, "recycle": 0.0, "p_terminal_timestep": 0.0, "learning_rate": 1e-4,
}  # fmt: skip

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The paper's networks, timesteps and rates, in our training: our losses, recycling, no attention.
    "cdal/ours_hippocampus": {
        "plan": {"dims": 2, "context": 0, "patch": (32, 32), "batch": 128},
        "config": _HIPPOCAMPUS | {"pyramid": True},
        "train": {"ema": 0.999},
    },
    "cdal/ours_monuseg": {
        "plan": {"dims": 2, "context": 0, "patch": (256, 256), "batch": 4, "flips": (0, 1)},
        "config": _MONUSEG | {"pyramid": True},
        "train": {"ema": 0.999},
    },
    "cdal/ours_cxr": {
        "plan": {"dims": 2, "context": 0, "patch": (256, 256), "batch": 3},
        "config": _CXR | {"pyramid": True},
        "train": {"ema": 0.999},
    },
    # The released hippocampus training: squared error only, attention on the label, a discriminator that never sees the
    # image, Adam at one rate, crops as they are.
    "cdal/as_released": {
        "plan": {"dims": 2, "context": 0, "patch": (32, 32), "batch": 128, "augmentation": "none"},
        "config": _HIPPOCAMPUS | _RELEASED | {"discriminator": "released"},
        "train": {"ema": 0.999, "clip": 0.0, "weight_decay": 0.0, "warmup": 0, "floor": 1.0},
    },
    # EnsemDiff predicts the noise; the other settings of our plain DDPM stay.
    "concat/as_published": {"plan": {}, "config": {"predict": "eps"}, "train": {}},
    # MedSegDiff's first version as its paper has it; where it is silent (schedule, skips) as improved DDPM and a plain U-Net.
    "medsegdiff/as_published": {
        "plan": {"dims": 2, "context": 0, "patch": (256, 256), "batch": 32, "steps": 100_000, "augmentation": "none"},
        "config": _PUBLISHED | {"size": "B", "dce": "published", "filter_size": 64, "skips": "mask", "image_time": True},
        "train": {"ema": 0.9999},
    },
    # Its second version as far as we know it; alpha, beta and the blocks of its transformer are ours.
    "medsegdiff_v2/as_published": {
        "plan": {"dims": 2, "context": 0, "patch": (256, 256), "batch": 32, "steps": 100_000, "augmentation": "none"},
        "config": _PUBLISHED | {"widths": (64, 128, 256, 384, 512), "blocks": 1, "encoder_blocks": 1},
        "train": {"ema": 0.9999},
    },
    # CDM's training as its code has it: noise and variance, uniform timesteps, both classes always told. The paper's T is not
    # known and the code's commands disagree; 1000 cosine timesteps is a reading, which its figure over Q fits. How long is
    # not known either. Sizes are those of the brain tumours.
    "cdm/as_released": {
        "plan": {"dims": 2, "context": 0, "batch": 4, "augmentation": "none"},
        "config": {
            "T": 1000, "schedule": "cosine", "predict": "eps", "variance": "learned", "vlb": 1e-3, "focus": 0.0,
            "label_dropout": 0.0, "widths": (128, 128, 256, 256, 512, 512), "blocks": 3, "dropout": 0.0, "learning_rate": 1e-4,
            "map": "published", "tau": 0.95, "steps": 10, "support": 0.0, "decide": "present",
        },
        "train": {"ema": 0.9999, "clip": 0.0, "weight_decay": 0.0, "warmup": 0, "floor": 1.0},
    },
}  # fmt: skip


# Names of before, which did not say whose training it is.
FORMER = {
    "cdal/hippocampus": "cdal/ours_hippocampus",
    "cdal/monuseg": "cdal/ours_monuseg",
    "cdal/cxr": "cdal/ours_cxr",
    "as_released": "cdal/as_released",
}


def preset_of(name: str) -> dict[str, dict[str, Any]] | None:
    """The preset of this name, or of this former name; None where there is none."""
    return PRESETS.get(FORMER.get(name, name))


def method_of(preset: str) -> str:
    """The method that a preset is for: the part of its name before the slash."""
    return FORMER.get(preset, preset).partition("/")[0]
