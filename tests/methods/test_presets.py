"""Every value of every preset of cDAL and of the plain DDPM, from what is published; MedSegDiff's are with its tests."""

import pytest

from diffuseg.config import from_dict
from diffuseg.methods import METHODS
from diffuseg.methods.presets import PRESETS
from diffuseg.train.settings import TrainConfig

# Of the released trainings: base width and multipliers, image size, self-attention at these resolutions, T, size of the latent
# and of its embedding, rates of G and D, batch, interval of the penalty, D's channels, the level of its attention, the layers
# of the condition encoder in all.
RELEASED = {
    "hippocampus": (32, (1, 2, 2, 2), 32, (16,), 4, 50, 128, 1.6e-4, 1.25e-4, 128, 10, (128, 128, 256, 512, 512), 2, 6),
    "monuseg": (64, (1, 1, 1, 2, 2, 4, 4), 256, (16, 8), 4, 100, 256, 2e-4, 1e-4, 4, 10, (128, 256, *[512] * 5), 3, 5),
    "cxr": (32, (1, 1, 2, 2, 4, 4), 256, (16,), 2, 100, 256, 2e-4, 1e-5, 3, 1, (128, 256, *[512] * 5), 2, 6),
}
OURS = ["cdal/ours_hippocampus", "cdal/ours_monuseg", "cdal/ours_cxr"]


def config_of(name: str):
    return from_dict(METHODS[name.partition("/")[0]].config_class, PRESETS[name]["config"])


@pytest.mark.parametrize("name", [*OURS, "cdal/as_released"])
def test_sizes_timesteps_and_rates_are_the_released_ones(name):
    data = name.partition("ours_")[2] or "hippocampus"
    base, multipliers, size, attended, T, latent, embedding, rate_G, rate_D, batch, every, *of_D, encoder = RELEASED[data]
    c, plan = config_of(name), PRESETS[name]["plan"]
    assert c.widths == tuple(base * m for m in multipliers)
    assert sorted(size // 2**stage for stage in c.attention_levels) == sorted(attended)
    assert (c.T, c.steps, c.beta_min, c.beta_max, c.input_scale) == (T, T, 0.1, 20.0, 1.0)
    assert (c.latent, c.latent_width, c.latent_depth, c.dropout, c.pyramid) == (latent, embedding, 3, 0.0, True)
    assert (c.learning_rate, c.discriminator_learning_rate, c.discriminator_every) == (rate_G, rate_D, 1)
    assert [c.discriminator_widths, c.attention_level] == of_D and (c.r1_every, c.encoder_blocks) == (every, encoder)
    assert (plan["dims"], plan["context"], plan["patch"], plan["batch"]) == (2, 0, (size, size), batch)
    assert c.blocks == {"hippocampus": 3, "monuseg": 5, "cxr": 3}[data]  # for the number of parameters
    assert PRESETS[name]["train"]["ema"] == 0.999


@pytest.mark.parametrize("name", OURS)
def test_what_is_called_ours_has_our_losses_recycling_and_no_attention(name):
    c = config_of(name)
    assert (c.mse, c.dice, c.cross_entropy, c.adversarial, c.output) == (0.0, 1.0, 1.0, 0.02, "softmax")
    assert (c.recycle, c.p_terminal_timestep, c.attention, c.attention_norm) == (1.0, 0.5, "off", "mean")
    assert (c.r1, c.betas, c.discriminator_image, c.discriminator) == (1.0, (0.9, 0.99), True, "ours")
    assert PRESETS[name]["train"] == {"ema": 0.999}
    assert PRESETS[name]["plan"].get("flips") == ((0, 1) if name == "cdal/ours_monuseg" else None)
    assert "augmentation" not in PRESETS[name]["plan"]


def test_as_released_is_the_released_training():
    """Squared error alone; attention on the label; D without the image; Adam (0.5, 0.9) at one rate, nothing clipped."""
    c, preset = config_of("cdal/as_released"), PRESETS["cdal/as_released"]
    assert (c.mse, c.dice, c.cross_entropy, c.adversarial, c.output) == (1.0, 0.0, 0.0, 0.0, "tanh")
    assert (c.recycle, c.p_terminal_timestep, c.attention, c.attention_norm) == (0.0, 0.0, "label", "none")
    assert (c.betas, c.discriminator_image, c.discriminator) == ((0.5, 0.9), False, "released")
    assert c.r1 * c.r1_every == pytest.approx(1.0)  # gamma 1, not multiplied by the interval
    train = from_dict(TrainConfig, preset["train"])
    assert (train.ema, train.clip, train.weight_decay, train.warmup, train.floor) == (0.999, 0.0, 0.0, 0, 1.0)
    assert preset["plan"]["augmentation"] == "none"


def test_the_plain_ddpm_as_published_predicts_the_noise_and_changes_nothing_else():
    assert PRESETS["concat/as_published"] == {"plan": {}, "config": {"predict": "eps"}, "train": {}}


def test_cdm_as_released_predicts_noise_and_variance_at_uniform_timesteps_and_drops_no_label():
    c, preset = config_of("cdm/as_released"), PRESETS["cdm/as_released"]
    assert (c.predict, c.variance, c.vlb, c.focus, c.label_dropout) == ("eps", "learned", 1e-3, 0.0, 0.0)
    assert (c.T, c.schedule, c.learning_rate, c.dropout, c.blocks) == (1000, "cosine", 1e-4, 0.0, 3)
    assert c.widths == tuple(128 * m for m in (1, 1, 2, 2, 4, 4)) and c.attention_levels == ()
    assert (c.map, c.tau, c.steps, c.support, c.decide, c.guidance) == ("published", 0.95, 10, 0.0, "present", None)
    train = from_dict(TrainConfig, preset["train"])
    assert (train.ema, train.clip, train.weight_decay, train.warmup, train.floor) == (0.9999, 0.0, 0.0, 0, 1.0)
    assert preset["plan"] == {"dims": 2, "context": 0, "batch": 4, "augmentation": "none"}


def test_every_preset_is_known_here_or_beside_its_method():
    assert set(PRESETS) == {
        *OURS, "cdal/as_released", "concat/as_published", "medsegdiff/as_published", "medsegdiff_v2/as_published",
        "cdm/as_released",
    }  # fmt: skip
