"""bfloat16 on a processor is used only after it has been compared with float32, on the shapes of the training itself.

Some processors' kernels read memory that nobody has written, for some shapes only: gradients are then wrong by any factor, and
mostly finite. So every layer of a training is run forward and backward before the first step, over memory full of odd numbers.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffuseg.data.plan import Plan
from diffuseg.device import Precision, choose_precision
from diffuseg.errors import UserError
from diffuseg.methods import Method
from diffuseg.types import Batch

TOLERANCE = 0.05  # of the largest value; bfloat16 itself rounds by 0.004
POISONS = (float("nan"), 1e30)
LONG = 32  # voxels of a side from which on it is cut short, to the same remainder of the kernels' blocks of 16
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
RATERS = 2  # of a made-up batch


class Fault(NamedTuple):
    """A layer whose bfloat16 is not its float32: what is wrong, of which layer, on which input, and by which share."""

    what: str
    layer: str
    shape: tuple[int, ...]
    error: float

    def __str__(self) -> str:
        return f"the {self.what} of {self.layer} on {list(self.shape)} is off by {self.error:.2g} of its size"


def training_precision(method: Method, device: torch.device, name: str) -> Precision:
    """The number type of a training: on a processor bfloat16 only where it agrees with float32 on this training's shapes.

    Args:
        method: On the device.
        device: Where it trains.
        name: "auto", "bf16" or "fp32".

    Raises:
        UserError: bf16 was asked for by name and is wrong here.
    """
    precision = choose_precision(device, name)
    if device.type != "cpu" or precision.dtype != torch.bfloat16:
        return precision
    fault = find_fault(method)
    if fault is None:
        return Precision(
            precision.dtype, f"{precision.reason}; forward and backward agree with fp32 on the shapes of this plan"
        )
    if name == "bf16":
        raise UserError(f"--precision bf16 is wrong on this processor: {fault}", do="Give --precision fp32, or leave it out")
    return Precision(torch.float32, f"fp32: bf16 is wrong on this processor: {fault}")


def find_fault(method: Method) -> Fault | None:
    """The first layer whose output or gradients in bfloat16 are not those in float32; None where all agree.

    The method stays as it is, and so do the random numbers that follow.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer, shape in layers_met(copy.deepcopy(method), _made_up_step):
            fault = check_layer(layer, shape)
            if fault is not None:
                return fault
    return None


def layers_met(method: Method, step: Callable[[Method], None]) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Each kind of layer with each shape of its input that a step of training meets, once."""
    met: dict[tuple[object, ...], tuple[nn.Module, tuple[int, ...]]] = {}

    def meet(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape = (1, *inputs[0].shape[1:])
        if not isinstance(layer, nn.Linear):
            shape = (*shape[:2], *(n if n < LONG else 16 + n % 16 for n in shape[2:]))
        met.setdefault((str(layer), shape), (layer, shape))

    hooks = [layer.register_forward_hook(meet) for layer in method.modules() if isinstance(layer, LAYERS)]
    step(method)
    for hook in hooks:
        hook.remove()
    return list(met.values())


def check_layer(layer: nn.Module, shape: tuple[int, ...]) -> Fault | None:
    """Compare a layer in bfloat16 with itself in float32: its output and both gradients, each time over poisoned memory."""
    layer = copy.deepcopy(layer).requires_grad_(True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5)  # those of a new model are almost nothing
    image = torch.randn(shape)
    with torch.autocast("cpu", enabled=False):
        size = layer(image).shape
    above, name = torch.randn(size), str(layer).partition("(")[0]
    wanted, first = _passes(layer, image, above, False), None
    for poison in POISONS:
        _poison(poison, [image, above, *layer.parameters()])
        found = _passes(layer, image, above, True)
        for what, a in found.items():
            error = float((a - wanted[what]).abs().max() / wanted[what].abs().max().clamp(min=1e-12))
            if not error <= TOLERANCE:
                return Fault(what, name, shape, error)
            if first is not None and not torch.equal(a, first[what]):
                return Fault(f"repetition of the {what}", name, shape, float((a - first[what]).abs().max()))
        first = found
    return None


def _passes(layer: nn.Module, image: Tensor, above: Tensor, bf16: bool) -> dict[str, Tensor]:
    """Output and gradients of a layer."""
    layer.zero_grad(set_to_none=True)
    x = image.clone().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        output = layer(x)
    output.float().backward(above)
    assert x.grad is not None
    found = {"output": output.detach().float(), "gradient of the input": x.grad}
    return found | {f"gradient of the {name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}


def _poison(value: float, like: list[Tensor]) -> None:
    """Leave this number in the memory that is given out next."""
    sizes = [1 << power for power in range(4, 19)] + [tensor.numel() for tensor in like for _ in range(2)]
    taken = [torch.full((size,), value) for size in sizes]
    del taken


def _made_up_step(method: Method) -> None:
    """Pass noise through each phase of a method: one image, as layers are compared on one; two where a batch has a norm."""
    method.train()
    masks = method.supervision == "mask"
    batch = made_up_batch(replace(method.plan, batch=1 if masks else min(method.plan.batch, 2)), masks)
    with torch.autocast("cpu", enabled=False):
        for phase in method.phases:
            method.loss(batch, phase, torch.Generator().manual_seed(0))


def made_up_batch(plan: Plan, masks: bool) -> Batch:
    """Noise in the shape of a training's batches."""
    image = torch.randn(plan.batch, plan.image_channels, *plan.patch)
    if not masks:
        return Batch(image, label=torch.arange(plan.batch) % plan.classes)
    classes = torch.randint(plan.classes, (plan.batch, RATERS, *plan.patch))
    raters = torch.nn.functional.one_hot(classes, plan.classes).movedim(-1, 2).float()
    return Batch(image, raters[:, 0], raters=raters if plan.raters == "all" else None)
