"""What an exact resume stands on."""

import copy

import pytest
import torch
from torch import nn

from diffuseg.checkpoint import read_meta
from diffuseg.errors import UserError
from diffuseg.train.state import load_state, save_state


def train(model, optimiser, steps, start=0):
    for step in range(start, start + steps):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_training_continues_bit_for_bit_from_a_saved_state(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    straight, average = copy.deepcopy(model), copy.deepcopy(model)
    adam = lambda m: torch.optim.AdamW(m.parameters(), 1e-2)
    optimiser = adam(straight)
    train(straight, optimiser, 7)

    first = adam(model)
    train(model, first, 4)
    save_state(tmp_path / "s", model, average, {"all": first}, {"step": 4, "seconds": 1.5, "best": 0.5})
    fresh = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    second = adam(fresh)
    assert load_state(tmp_path / "s", fresh, average, {"all": second}) == {"step": 4, "seconds": 1.5, "best": 0.5}
    train(fresh, second, 3, start=4)
    for a, b in zip(fresh.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", None])
def test_what_is_not_a_checkpoint_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        read_meta(path)
