"""bfloat16 on a processor is used where it agrees with float32, and nowhere else."""

import pytest
import torch
from torch import nn

from diffuseg.data.plan import Plan
from diffuseg.errors import UserError
from diffuseg.methods import METHODS
from diffuseg.train import precision
from diffuseg.train.precision import check_layer, training_precision

CPU = torch.device("cpu")
PLAN = Plan("made", ("a",), {"background": 0, "a": 1}, ".nii.gz", patch=(8, 8, 8), widths=(4, 8))


class Careless(nn.Conv3d):
    """A convolution whose weight gradient takes in memory that nobody has written, where the first axis is 2."""

    def forward(self, x):  # type: ignore[override]
        out = super().forward(x)
        if torch.is_autocast_enabled("cpu") and x.shape[2] == 2 and out.requires_grad:
            return out + 0 * out.detach() + (self.weight - self.weight.detach()).sum() * 1e3
        return out


@pytest.fixture
def with_bf16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)


def test_a_gradient_that_is_off_is_found_on_the_one_shape_that_has_it():
    layer = Careless(4, 4, 3, padding=1)
    assert check_layer(layer, (1, 4, 3, 4, 4)) is None
    fault = check_layer(layer, (1, 4, 2, 4, 4))
    assert fault is not None and fault.what == "gradient of the weight" and fault.shape == (1, 4, 2, 4, 4)


@pytest.mark.parametrize("name", ["unet", "cdal", "cam"])
def test_the_check_meets_every_resolution_and_changes_nothing(name, with_bf16, monkeypatch):
    method = METHODS[name](PLAN, METHODS[name].config_class())
    weights = {key: value.clone() for key, value in method.state_dict().items()}
    met: list[tuple[int, ...]] = []
    monkeypatch.setattr(precision, "check_layer", lambda layer, shape: met.append(shape))
    torch.manual_seed(3)
    chosen = training_precision(method, CPU, "auto")
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1)), "the random numbers that follow are others"
    assert all(torch.equal(value, weights[key]) for key, value in method.state_dict().items())
    assert {shape[2] for shape in met if len(shape) == 5} >= {8, 4}
    assert chosen.dtype == torch.bfloat16 and "agree with fp32" in chosen.reason


def test_where_it_is_wrong_the_line_says_so_and_a_wish_is_refused(with_bf16, monkeypatch):
    fault = precision.Fault("gradient of the weight", "Conv3d", (1, 4, 2, 4, 4), float("nan"))
    monkeypatch.setattr(precision, "check_layer", lambda layer, shape: fault)
    method = METHODS["unet"](PLAN, METHODS["unet"].config_class())
    chosen = training_precision(method, CPU, "auto")
    assert chosen.dtype == torch.float32
    assert "gradient of the weight of Conv3d on [1, 4, 2, 4, 4]" in chosen.reason
    with pytest.raises(UserError, match="--precision bf16 is wrong on this processor"):
        training_precision(method, CPU, "bf16")
    assert training_precision(method, CPU, "fp32").dtype == torch.float32
