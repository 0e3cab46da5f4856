"""Operations of draws are those of a closed form, and grow as the draws do."""

from dataclasses import replace

import pytest
import torch

from benchmarks.flops import LIDC, of_draws, operations
from diffuseg.methods import METHODS

SMALL = replace(LIDC, patch=(16, 16), widths=(8, 16))


def test_a_convolution_multiplies_and_adds_once_for_each_weight_and_pixel():
    convolution = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert operations(lambda: convolution(torch.zeros(2, 3, 7, 9))) == 2 * (3 * 5 * 3 * 3) * (2 * 7 * 9)


@pytest.mark.parametrize("name", ["unet", "ssn", "distributional", "cdal"])
def test_each_further_draw_costs_as_much(name):
    """Of the U-Net nothing, of `distributional` less than a pass, of cDAL its steps without the encoder."""
    method = METHODS[name](SMALL, METHODS[name].config_class()).eval()
    one, two, nine = (of_draws(method, n) for n in (1, 2, 9))
    assert nine - one == 8 * (two - one)
    unet = of_draws(METHODS["unet"](SMALL, METHODS["unet"].config_class()).eval(), 1)
    low, high = {"unet": (0, 0), "ssn": (0, 0.1), "distributional": (0, 0.5), "cdal": (1, 2.5)}[name]
    assert low * unet <= two - one <= high * unet
