"""A plan: the grid a model works on, and the reason for each of its settings."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Plan:
    """Everything about the data that a model has to remember.

    dims           2 or 3: spatial axes the network sees
    context        2.5-D: neighbouring slices on each side that become further channels; 0 otherwise
    orientation    axis codes the volume is brought to ("RAS"); None for plain 2-D pictures
    spacing        mm per axis of the working grid; None keeps the file's own grid
    normalisation  one of "zscore" | "ct" | "unit", per channel
    intensity      per channel: statistics the normalisation needs ("ct": low, high, mean, std)
    patch          spatial size of a training patch and of a prediction tile (2.5-D: in-plane)
    slice_axis     axis of the reoriented volume along which a 2-D method slices it
    flips          axes of the patch along which mirroring is a harmless augmentation
    """

    dataset: str
    channels: tuple[str, ...]
    labels: dict[str, int]
    file_ending: str
    dims: int = 3
    context: int = 0
    orientation: str | None = "RAS"
    spacing: tuple[float, ...] | None = None
    normalisation: tuple[Literal["zscore", "ct", "unit"], ...] = ("zscore",)
    intensity: tuple[dict[str, float], ...] = ()
    patch: tuple[int, ...] = (32, 32, 32)
    slice_axis: int = 2
    widths: tuple[int, ...] = (16, 32, 64, 128)
    batch: int = 2
    steps: int = 2000
    augmentation: Literal["mr", "ct", "colour", "xray", "none"] = "mr"
    flips: tuple[int, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """Number of classes k, background included."""
        return len(self.labels)

    @property
    def image_channels(self) -> int:
        """Image channels the network sees: in 2.5-D each channel comes with its neighbouring slices."""
        return len(self.channels) * (2 * self.context + 1)
