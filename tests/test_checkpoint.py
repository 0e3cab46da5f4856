"""A checkpoint gives back the method that it was made of."""

import torch
from safetensors.torch import load_file

from diffuseg.checkpoint import load_checkpoint, save_checkpoint
from tests.contract.test_methods import build


def test_half_the_numbers_draw_nearly_the_same(tmp_path):
    method = build("cdal").eval()
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save_checkpoint(full, method, {})
    save_checkpoint(half, method, {}, dtype=torch.float16)
    assert {value.dtype for value in load_file(half).values()} == {torch.float16}
    assert half.stat().st_size < 0.6 * full.stat().st_size
    loaded, plan, _ = load_checkpoint(half)
    assert plan == method.plan and all(p.dtype == torch.float32 for p in loaded.parameters())
    image = torch.randn(2, 8, 12, 9, generator=torch.Generator().manual_seed(0))
    for one, other in zip(method.draw(image, seeds=[1, 2]), loaded.draw(image, seeds=[1, 2]), strict=True):
        torch.testing.assert_close(one, other, atol=5e-3, rtol=0)
        assert not torch.equal(one, other)
