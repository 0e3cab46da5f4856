"""CDM: masks from image-level labels by a class-conditional diffusion model of the image (Hu et al., MICCAI 2023).

A diffusion model learns p(image | class) from images and the class of each. What then depends on the class in its
denoising of one image is where the class is: the sensitivity of x0_hat to the condition, from "object" y1 to "none" y0.
Notation: x_0 the image, y its class, f(y) the embedding, timesteps t = 1..T.

Here: the model and its training, Algorithm 1 (`published`), and guidance (CG-CDM). The default map is not the paper's but our
own, see likelihood_ratio.py; other papers' maps are in counterfactual.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg.config import current_name
from diffuseg.data.plan import Plan
from diffuseg.diffusion.parameterization import split_learned_variance, target, to_x0
from diffuseg.diffusion.schedule import SCHEDULES, NoiseSchedule, ScheduleName
from diffuseg.errors import UserError
from diffuseg.methods.base import ImageLabel, Loss, Phase, setting
from diffuseg.methods.training import randn_like, sample_timesteps, squared_error, variational_bound
from diffuseg.methods.weak import counterfactual
from diffuseg.methods.weak.base import WeakConfig, WeakMethod, own_settings
from diffuseg.methods.weak.binarize import Part, part_of
from diffuseg.methods.weak.likelihood_ratio import likelihood_ratio
from diffuseg.methods.weak.sensitivity import Condition, Contrast, Denoiser, start_timestep
from diffuseg.networks.classifier import Classifier
from diffuseg.networks.conditional import ClassConditionalUNet
from diffuseg.text import did_you_mean
from diffuseg.types import Batch

CLASSIFICATION_TIMESTEPS = 8  # at which each class is tried on an image
CLASSIFICATION_DRAWS = 4  # noise draws at each of them, when it decides whether there is anything to segment
FOCUS = (1.5, 1.5)  # mean and deviation of the log-SNR where maps are taken
TO_CALIBRATE = "`diffuseg calibrate-saliency MODEL DATASET`, with the same --set, or decide=diffusion"
NO_CLASSIFIER = "this needs a classifier, and the model has none: train with --set classifier_widths=16,32,64,128"


@dataclass(frozen=True)
class Map:
    """A kind of map, and its settings where none are given; log_snr: from, to (or the depth of a counterfactual)."""

    steps: int
    log_snr: tuple[float, float]
    tau: float = 0.0
    guidance: float = 0.0
    part: Part = "signed"


MAPS: dict[str, Map] = {
    "likelihood_ratio": Map(3, (4.0, 1.0)),
    "published": Map(10, (0.6, 0.6), tau=0.95),
    "guided": Map(100, (0.0, -2.5), guidance=100.0, part="absolute"),
    "classifier_free": Map(100, (0.0, -2.5), part="absolute"),
}


@dataclass(frozen=True)
class MapConfig(WeakConfig):
    """Which map, and how; all of it may be changed after training. None and "auto" are each map's own choice (MAPS).

    map                    "likelihood_ratio": ours; "published": Algorithm 1 of the paper; counterfactuals: "guided" by the
                           classifier (CG-Diff), or "classifier_free"
    steps, log_snr, tau    of the map
    guidance               scale s of the classifier's gradient
    free_weight            how far a classifier-free counterfactual goes from "no label" towards y0
    support                of the likelihood ratio: how far around, in voxels, the image must side with the change for it to
                           count; 0: the change counts everywhere
    part                   what of the signed map counts; signed channels may cancel, see `part_of`
    decide                 who says what the image shows: how far its map stands out ("map"), the class that denoises it best
                           ("diffusion"), the classifier; or "present": it shows an object, as in the paper's protocol.
                           "auto": the map, or without a calibration of maps like this the class that denoises best
    """

    aliases: ClassVar = WeakConfig.aliases | {
        "map=levels": "map=likelihood_ratio",
        "map=accumulated": "map=published",
        "switch=full": "",
        "switch=None": "",
    }
    removed: ClassVar = {"map=shared": "map=published", "part=positive": "part=signed", "switch": ""}

    map: Literal["likelihood_ratio", "published", "guided", "classifier_free"] = "likelihood_ratio"
    steps: int | None = setting(None, 1)
    log_snr: tuple[float, float] | None = None
    tau: float | None = setting(None, 0, 1)
    guidance: float | None = setting(None, 0)
    free_weight: float = 3.0
    support: float = setting(2.0, 0, 100)
    part: Literal["auto", "signed", "negative", "absolute"] = "auto"
    decide: Literal["auto", "map", "diffusion", "classifier", "present"] = "auto"


@dataclass(frozen=True)
class CDMConfig(MapConfig):
    """Every choice of the method by name; docs/methods/cdm.md says what the paper and its code choose.

    T, schedule, predict   timesteps, how noise grows over them, and what the network outputs
    variance, vlb          "learned": the network also outputs a variance, as published, trained by the bound with this
                           weight; no map takes a step with noise, so nothing else uses it
    focus                  share of images whose log-SNR is drawn about where maps are taken (FOCUS); the others' t is uniform
    label_dropout          share of images that are shown without their label, so that the model is also unconditional
    attention_levels       stages of the U-Net with self-attention; its bottom always has it
    classifier_widths      of a noise-aware classifier that is trained beside it, one per stage; empty for none
    """

    T: int = setting(1000, 2)
    schedule: ScheduleName = "cosine"
    predict: Literal["eps", "x0", "v"] = "v"
    variance: Literal["fixed", "learned"] = "fixed"
    vlb: float = setting(1e-3, 0)
    focus: float = setting(0.5, 0, 1)
    label_dropout: float = setting(0.1, 0, 1)
    attention_levels: tuple[int, ...] = ()
    dropout: float = setting(0.0, 0, 1)
    classifier_widths: tuple[int, ...] = ()
    classifier_learning_rate: float = 1e-3


def published(
    contrast: Contrast, x_0: Float[Tensor, "n c *s"], schedule: NoiseSchedule, noise: Callable[[], Tensor],
    steps: int, log_snr: tuple[float, float],
) -> Float[Tensor, "n c *s"]:  # fmt: skip
    """Two deterministic (DDIM) paths from one x_Q drift apart; the sum of (x_s - x'_s) / (1 - tau) along them.

    tau = 1: one path and its tangent, which is what the second path tends to. Q is at the first log-SNR.

    References:
        Hu et al. 2023, Algorithm 1.
    """
    Q = start_timestep(schedule, log_snr[0], steps)
    x = schedule.q_sample(x_0, Q, noise())
    zero = torch.zeros_like(x)
    other, total = (x, zero) if contrast.tau < 1 else (zero, zero)  # the second path, or the tangent
    for t in range(Q, Q - steps, -1):
        step = contrast.apart if contrast.tau < 1 else contrast.moving
        x_hat, other_hat = step(x, other, t)
        x = schedule.posterior(x_hat, x, t, t - 1, 0.0, zero)
        other = schedule.posterior(other_hat, other, t, t - 1, 0.0, zero)  # linear, so it carries a tangent too
        total = total + ((x - other) / (1 - contrast.tau) if contrast.tau < 1 else other)
    return total


class CDM(WeakMethod[CDMConfig]):
    """Learns from image-level labels, no masks: a diffusion model of the images, and where in them the label matters.

    eps_theta(x_t, t, f(y)) over images; masks come out of how much f(y) matters, where.
    """

    models_images = True
    config_class = CDMConfig
    inference_settings = own_settings(MapConfig)

    def __init__(self, plan: Plan, config: CDMConfig) -> None:
        super().__init__(plan, config)
        self.schedule = SCHEDULES[config.schedule](config.T)
        c, k = plan.image_channels, plan.classes
        outputs = 2 * c if config.variance == "learned" else c
        self.network = ClassConditionalUNet(
            plan.dims, c, k, self.widths, config.blocks, config.attention_levels, config.dropout, outputs
        )
        widths = config.classifier_widths
        self.classifier = Classifier(plan.dims, c, k, widths, time=True) if widths else None
        if self.classifier is None and (config.guidance or config.map == "guided" or config.decide == "classifier"):
            raise UserError(NO_CLASSIFIER)
        self.register_scale()
        self.default_sampler = config.map

    @property
    def phases(self) -> tuple[Phase, ...]:
        if self.classifier is None:
            return super().phases
        return *super().phases, Phase("classifier", ("classifier",), self.config.classifier_learning_rate)

    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> Loss:
        """|| target - output ||^2 at drawn timesteps, the label dropped for a share of the images; or -log p(y | x_t)."""
        assert batch.label is not None
        x_0 = batch.image * self.scale
        t = self.training_timesteps(len(x_0), rng).to(x_0.device)
        noise = randn_like(x_0, rng)
        x_t = self.schedule.q_sample(x_0, t, noise)
        if phase.name == "classifier":
            logits = self.logits(x_t, t)
            right = (logits.argmax(1) == batch.label).float().mean()
            return F.cross_entropy(logits, batch.label.long()), {"right": right}
        dropped = torch.rand(len(x_0), generator=rng).to(x_0.device) < self.config.label_dropout
        label = torch.where(dropped, self.network.no_label, batch.label)
        output, v = self.output(x_t, t, self.network.embed(label))
        error = squared_error(output, self.target(x_0, t, noise)).mean()
        if v is None:
            return error, {"mse": error.detach()}
        x0_hat = to_x0(self.config.predict, output, x_t, self.schedule.at(t, x_t)).detach()
        bound = variational_bound(self.schedule, x_0, x0_hat, t, v)
        return error + self.config.vlb * bound, {"mse": error.detach(), "vlb": bound.detach()}

    def training_timesteps(self, n: int, rng: torch.Generator) -> Int[Tensor, " n"]:
        """Timesteps to train at: uniform, a share of them by their log-SNR."""
        t = sample_timesteps(n, self.schedule.T, p_terminal=0.0, rng=rng)
        near = FOCUS[0] + FOCUS[1] * torch.randn(n, generator=rng)
        focused = torch.tensor([self.schedule.timestep(float(log_snr)) for log_snr in near])
        return torch.where(torch.rand(n, generator=rng) < self.config.focus, focused, t)

    @torch.no_grad()
    def class_errors(self, image: Float[Tensor, "c *s"], seed: int) -> Float[Tensor, " k"]:
        """The denoising error of an image under each class: mean over timesteps, with the same noise for all classes."""
        self.eval()
        n = CLASSIFICATION_TIMESTEPS
        x_0 = (image * self.scale).expand(n, *image.shape)
        t = ((torch.arange(n, device=image.device) + 0.5) * self.schedule.T / n).long() + 1
        noise = randn_like(x_0, torch.Generator().manual_seed(seed))
        x_t, wanted = self.schedule.q_sample(x_0, t, noise), self.target(x_0, t, noise)
        outputs = [self.output(x_t, t, self.network.embed(torch.full_like(t, y)))[0] for y in range(self.plan.classes)]
        return torch.stack([squared_error(output, wanted).mean() for output in outputs])

    def target(self, x_0: Tensor, t: Int[Tensor, " b"], noise: Tensor) -> Float[Tensor, "b c *s"]:
        """What the network is to output for x_t."""
        return target(self.config.predict, x_0, noise, self.schedule.at(t, x_0))

    def output(
        self, x_t: Float[Tensor, "b c *s"], t: Int[Tensor, " b"], e: Float[Tensor, "b e"]
    ) -> tuple[Float[Tensor, "b c *s"], Float[Tensor, "b c *s"] | None]:
        """Noise, image, or v for x_t under an embedding, float32; and v in (0, 1) of a learned variance."""
        output = self.network(x_t, t * (1000 / self.schedule.T), e).float()
        return (output, None) if self.config.variance == "fixed" else split_learned_variance(output)

    def logits(self, x_t: Float[Tensor, "b c *s"], t: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Of the noise-aware classifier for x_t."""
        assert self.classifier is not None
        return self.classifier(x_t, t * (1000 / self.schedule.T)).float()

    def denoise(self, x_t: Float[Tensor, "b c *s"], t: int, condition: Condition) -> Float[Tensor, "b c *s"]:
        """x0_hat in scaled intensities."""
        ts = torch.full((len(x_t),), t, device=x_t.device)
        return to_x0(self.config.predict, self.output(x_t, ts, condition.e)[0], x_t, self.schedule.at(ts, x_t))

    def guide(self, x_t: Float[Tensor, "b c *s"], t: int, condition: Condition, s: float) -> Float[Tensor, "b c *s"]:
        """x0_hat with eps_hat - s sqrt(1 - ab) grad log p(w | x_t): the classifier pulls towards the labels w.

        References:
            Dhariwal and Nichol 2021, algorithm 2.
        """
        x_0 = self.denoise(x_t, t, condition)
        if not s:
            return x_0
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            chosen = (condition.w * self.logits(x, torch.full((len(x),), t, device=x.device)).log_softmax(1)).sum()
            pull = torch.autograd.grad(chosen, x)[0]
        ab = self.schedule.at(t, x_t)
        return x_0 + s * (1 - ab) / ab.sqrt() * pull

    def sampling(self, sampler: str | None, steps: int | None) -> tuple[str, int]:
        _, name = current_name(CDMConfig, "map", sampler or self.config.map) or ("", "")
        if name not in MAPS:
            raise UserError(f"unknown map {name!r}", do=did_you_mean(name, MAPS))
        usual = self.config.steps if name == self.config.map and self.config.steps else MAPS[name].steps
        return name, usual if steps is None else steps

    def evaluations(self, sampler: str, steps: int) -> int:
        """Of both networks, for one draw; a derivative counts as a second condition, a gradient as no call of its own.

        At each step two conditions, of the likelihood ratio with two noises; the counterfactuals are run once on the way there,
        and on the way back once beside the classifier, or under two conditions.
        """
        s = self.map_of(sampler).guidance
        if sampler == "classifier_free":
            return 3 * steps
        if sampler == "guided":
            return (3 if s else 2) * steps
        return (4 if sampler == "likelihood_ratio" else 2) * (2 if s else 1) * steps

    def map_of(self, name: str) -> Map:
        """A kind of map with the settings that were given, its own for the others."""
        given = {key: getattr(self.config, key) for key in ("log_snr", "tau", "guidance", "part")}
        return replace(MAPS[name], **{key: value for key, value in given.items() if value not in (None, "auto")})

    def map_settings(self, name: str, steps: int) -> dict[str, Any]:
        """All that decides a map besides image and noise, with each map's own choices filled in; only what it uses."""
        m, used = self.map_of(name), {"map": name, "steps": steps, "smooth": self.config.smooth}
        used |= {"log_snr": list(m.log_snr), "guidance": m.guidance, "part": m.part}
        if name == "classifier_free":
            used["free_weight"] = self.config.free_weight
        elif name != "guided":
            used["tau"] = m.tau
        if name == "likelihood_ratio":
            used["support"] = self.config.support
        return used

    @torch.no_grad()
    def classify_image(self, image: Float[Tensor, "c *s"]) -> ImageLabel:
        self.eval()
        self.refuse_slices(image)
        c = self.config
        by_map = self.classify_by_map(image) if c.decide in ("auto", "map") else None
        if by_map is not None:
            return by_map
        if c.decide == "map":
            raise UserError("decide=map: maps with these settings were not calibrated on labelled images", do=TO_CALIBRATE)
        if c.decide == "classifier":
            x_0 = (image * self.scale).expand(CLASSIFICATION_TIMESTEPS, *image.shape)
            t = (torch.arange(CLASSIFICATION_TIMESTEPS, device=image.device) * self.schedule.T // 20).long() + 1
            x_t = self.schedule.q_sample(x_0, t, randn_like(x_0, torch.Generator().manual_seed(0)))
            scores, calls = self.logits(x_t, t).log_softmax(1).mean(0), CLASSIFICATION_TIMESTEPS
        else:
            scores = -torch.stack([self.class_errors(image, seed) for seed in range(CLASSIFICATION_DRAWS)]).mean(0)
            calls = CLASSIFICATION_DRAWS * CLASSIFICATION_TIMESTEPS * self.plan.classes
        return self.image_label(scores, "diffusion" if c.decide == "auto" else c.decide, calls)

    def saliency(
        self, x_0: Float[Tensor, "n c *s"], y: int, name: str, steps: int, noise: Callable[[], Tensor]
    ) -> Float[Tensor, "n *s"]:
        m = self.map_of(name)
        if m.guidance and self.classifier is None:
            raise UserError(NO_CLASSIFIER)
        guide: Denoiser = lambda x_t, t, condition: self.guide(x_t, t, condition, m.guidance)
        one, none, free = (self.condition(label, x_0.device) for label in (y, 0, self.network.no_label))
        if name == "guided":
            change = counterfactual.guided(self.denoise, guide, none, x_0, self.schedule, steps, m.log_snr[1])
        elif name == "classifier_free":
            weight, depth = self.config.free_weight, m.log_snr[1]
            change = counterfactual.classifier_free(self.denoise, none, free, weight, x_0, self.schedule, steps, depth)
        else:
            if m.tau == 1 and m.guidance:
                what = "tau=1 is the derivative in the condition: guidance has none"
                raise UserError(what, do="Give tau=0.99, or guidance=0")
            contrast = Contrast(guide, one, none, m.tau)
            if name == "published":
                change = published(contrast, x_0, self.schedule, noise, steps, m.log_snr)
            else:
                change = likelihood_ratio(contrast, x_0, self.schedule, noise, steps, m.log_snr, self.config.support)
        return part_of(change, m.part)

    def condition(self, label: int, device: torch.device | str) -> Condition:
        """A class (or no label) as an embedding, and as what guidance is towards."""
        w = torch.zeros(1, self.plan.classes, device=device)
        if label < self.plan.classes:
            w[0, label] = 1.0
        return Condition(self.network.embed(torch.tensor([label], device=device)), w)
