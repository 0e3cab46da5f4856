"""What a network may output: the noise, the clean data, or v; pure functions between them.

With a = sqrt(alpha_bar), s = sqrt(1 - alpha_bar):  x_t = a x_0 + s eps,  v = a eps - s x_0  (Salimans and Ho 2022).
"""

from typing import Literal

from torch import Tensor

Kind = Literal["eps", "x0", "v"]


def target(kind: Kind, x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """What a network of this kind is trained to output.

    Args:
        kind: "eps": the noise; "x0": the clean data; "v": sqrt(ab) noise - sqrt(1 - ab) x_0.
        x_0: Clean data [b, ...].
        noise: Of the same shape.
        alpha_bar: Of the timesteps, shaped to multiply x_0.
    """
    if kind == "eps":
        return noise
    return x_0 if kind == "x0" else alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x_0


def split_learned_variance(output: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of the channels of a network that has learnt a variance: its prediction, and v in (0, 1)."""
    prediction, logit = output.chunk(2, dim=1)
    return prediction, logit.sigmoid()


def to_x0(kind: Kind, output: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_0 from the output of a network of this kind for x_t.

    Args:
        kind: "eps", "x0" or "v", see `target`.
        output: Of the network.
        x_t: What it was shown.
        alpha_bar: Of the timesteps, shaped to multiply x_t; above 0 for eps.
    """
    if kind == "eps":
        return (x_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
    return output if kind == "x0" else alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * output
