"""From many draws to one mask: the largest mean probability, the majority of the draws, the best expected Dice, or STAPLE.

mean     the class with the largest mean probability                          memory: nothing beyond the mean itself
vote     the class that most draws say; of equals the one with the larger mean       one count per class and voxel
dice     of each class, so many of its most frequent voxels as overlap the draws best    one byte per draw and voxel
staple   expectation maximisation over the draws as raters (Warfield et al. 2004)    one byte per draw and voxel

Where draws disagree about the size of an object or whether it is there, the majority is not what overlaps best with them: a
voxel belongs into the mask of the best expected Dice from a frequency of half that Dice on (Zhao et al., ECML PKDD 2013).
STAPLE weighs each draw by how often it confuses which classes, compared with the consensus of all of them. Its probabilities
say how sure the consensus is of itself, not how sure the model is: a Prediction keeps the mean of the draws as its
probability whatever makes its mask.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from diffuseg import scratch
from diffuseg.blocks import blocks, largest
from diffuseg.errors import UserError
from diffuseg.inference.ensemble import winners
from diffuseg.text import did_you_mean

TIE = 1e-3  # what a mean probability counts against one vote: enough to decide between equals, and nothing else


class Fusion(ABC):
    """Takes in probability maps [k, *s] one by one; `shares` is what the mask is the largest of, after resampling."""

    def __init__(self) -> None:
        self.draws = 0

    def add(self, probability: Float[Tensor, "k *s"]) -> None:
        """Take in one draw."""
        self.draws += 1
        self._add(probability)

    @abstractmethod
    def _add(self, probability: Tensor) -> None: ...

    @abstractmethod
    def shares(self, mean: Float[Tensor, "k *s"]) -> Float[Tensor, "k *s"]:
        """Each class's claim to each voxel, >= 0; `mean` is the mean probability of the draws, which decides ties."""


class Mean(Fusion):
    """The mean probability itself."""

    def _add(self, probability: Tensor) -> None:
        pass

    def shares(self, mean: Float[Tensor, "k *s"]) -> Float[Tensor, "k *s"]:
        return mean


class Vote(Fusion):
    """The class that is the most probable one in most draws."""

    def __init__(self) -> None:
        super().__init__()
        self._counts = torch.zeros((), dtype=torch.int16)

    def _add(self, probability: Tensor) -> None:
        if self.draws == 1:
            self._counts = scratch.tensor(probability.shape, probability.device, np.int16)
        for part in blocks(probability.shape[1:]):
            self._counts[:, part] += winners(probability[:, part])

    def shares(self, mean: Float[Tensor, "k *s"]) -> Float[Tensor, "k *s"]:
        labels = scratch.tensor(mean.shape[1:], mean.device, np.uint8 if len(mean) < 256 else np.int16)
        for part in blocks(labels.shape):
            labels[part] = (self._counts[:, part] + TIE * mean[:, part]).argmax(0)
        return claims(labels, mean)


class LabelMaps(Fusion):
    """Keeps the label map of every draw, uint8. Refuses more than 255 classes."""

    def __init__(self) -> None:
        super().__init__()
        self._labels: list[UInt8[np.ndarray, "*s"]] = []

    def _add(self, probability: Tensor) -> None:
        if len(probability) > 255:
            fuse = type(self).__name__.lower()
            raise UserError(f"--fuse {fuse} of {len(probability)} classes: there is room for 255", do="Choose --fuse vote")
        self._labels.append(largest(probability.cpu().numpy()))


class Dice(LabelMaps):
    """The mask with the largest mean Dice with the draws, of the level sets of their frequencies: `best_overlap`."""

    def shares(self, mean: Float[Tensor, "k *s"]) -> Float[Tensor, "k *s"]:
        return claims(torch.from_numpy(best_overlap(np.stack(self._labels), len(mean))).to(mean.device), mean)


class Staple(LabelMaps):
    """Simultaneous truth and performance level estimation over label maps of several classes, by SimpleITK.

    Refuses to start without SimpleITK.
    """

    def __init__(self) -> None:
        super().__init__()
        self._itk = simple_itk()

    def shares(self, mean: Float[Tensor, "k *s"]) -> Float[Tensor, "k *s"]:
        """Where STAPLE cannot decide between classes, the mean does."""
        first = self._labels[0]
        if all(np.array_equal(first, other) for other in self._labels[1:]):
            return claims(torch.from_numpy(first).to(mean.device), mean)
        undecided = len(mean)
        filter_ = self._itk.MultiLabelSTAPLEImageFilter()
        filter_.SetLabelForUndecidedPixels(undecided)
        filter_.SetMaximumNumberOfIterations(1000)
        decided = filter_.Execute([self._itk.GetImageFromArray(labels) for labels in self._labels])
        labels = torch.from_numpy(self._itk.GetArrayFromImage(decided).astype(np.int64)).to(mean.device)
        return claims(torch.where(labels == undecided, mean.argmax(0), labels), mean)


FUSIONS: dict[str, type[Fusion]] = {"mean": Mean, "vote": Vote, "dice": Dice, "staple": Staple}


def claims(labels: Integer[Tensor, "*s"], mean: Float[Tensor, "k *s"]) -> Float[Tensor, "k *s"]:
    """The mean probability, with those of its largest class and of the class of the label map exchanged where these differ.

    A label map alone is resampled in blocks; the mean also knows where between two voxels a border is. Where an exchange does
    not make the class of the label map the largest, because the two are equal, it is 1 and the others are 0.

    Args:
        labels: Class indices on the grid.
        mean: Probabilities on the grid.
    """
    shares = scratch.tensor(mean.shape, mean.device)
    for part in blocks(labels.shape):
        shares[:, part] = _claims(labels[part].long(), mean[:, part])
    return shares


def _claims(labels: Tensor, mean: Tensor) -> Tensor:
    chosen, most = labels[None], mean.argmax(0, keepdim=True)
    exchanged = mean.scatter(0, most, mean.gather(0, chosen)).scatter(0, chosen, mean.gather(0, most))
    alone = torch.nn.functional.one_hot(labels, len(mean)).movedim(-1, 0).to(mean.dtype)
    return torch.where(exchanged.argmax(0) == labels, exchanged, alone)


def best_overlap(draws: Integer[np.ndarray, "n *s"], classes: int) -> Integer[np.ndarray, "*s"]:
    """Class indices [*s] of the mask that overlaps best with draws: class indices [n, *s], class 0 the background.

    For each class, of the sets of voxels that at least tau draws give it, tau = 1 .. n, and of the empty set, that with the
    largest mean Dice with the draws (1 where both are empty); of equals the largest set. Where sets of two classes meet, the
    more frequent class wins, of equals the first.
    """
    n, flat = len(draws), draws.reshape(len(draws), -1)
    wanted = np.zeros((classes, flat.shape[1]), np.uint16)
    for k in range(1, classes):
        mine = flat == k
        count = mine.sum(0, dtype=np.uint16)
        within = np.stack([np.bincount(count[one], minlength=n + 2) for one in mine])  # [draw, count]
        common = within[:, ::-1].cumsum(1)[:, ::-1][:, 1:]  # with the set of tau = 1 .. n + 1, the last one empty
        size = np.bincount(count, minlength=n + 2)[::-1].cumsum()[::-1][1:]
        both = mine.sum(1)[:, None] + size
        overlap = np.where(both > 0, 2 * common / np.maximum(both, 1), 1.0).mean(0)
        wanted[k] = np.where(count >= 1 + int(overlap.argmax()), count, 0)
    return largest(wanted).reshape(draws.shape[1:])


def fusion(name: str) -> Fusion:
    """A fresh fusion of this name.

    Raises:
        UserError: The name is unknown, or it is STAPLE and SimpleITK is not installed.
    """
    if name not in FUSIONS:
        raise UserError(f"unknown fusion {name!r}", do=did_you_mean(name, FUSIONS))
    return FUSIONS[name]()


def simple_itk() -> Any:
    """The library that STAPLE is in, an optional dependency.

    Raises:
        UserError: It is not installed; the message names the extra.
    """
    try:
        import SimpleITK
    except ImportError:
        raise UserError("STAPLE needs SimpleITK", do="pip install 'diffuseg[itk]', or choose --fuse vote") from None
    return SimpleITK
