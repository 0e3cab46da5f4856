"""Networks that torch.compile translates once, for steps that take less time; what is computed is the same up to rounding."""

import torch

from diffuseg.device import Precision
from diffuseg.errors import UserError
from diffuseg.methods import Method
from diffuseg.train.trial import trial_step

BACKEND = "inductor"


def compile_networks(method: Method, batch: int, precision: Precision, device: torch.device) -> list[str]:
    """Compile the networks of a method in place, and try them in a step on made-up data.

    Networks whose gradients are differentiated again stay as they are, as compiled ones have no second derivatives.

    Returns:
        The names of those that are compiled.

    Raises:
        UserError: There is nothing to compile, or it does not work here, such as without a C++ compiler.
    """
    twice = {name for phase in method.phases if phase.twice for name in phase.modules}
    names = [name for name in dict.fromkeys(name for phase in method.phases for name in phase.modules) if name not in twice]
    for name in names:
        method.get_submodule(name).compile(backend=BACKEND, dynamic=False)
    try:
        trial_step(method, batch, precision, device)
    except UserError:
        raise
    except Exception as error:
        fault = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        do = "Leave out --compile; after one that was killed, empty the cache of torch.compile (TORCHINDUCTOR_CACHE_DIR)"
        raise UserError(f"--compile does not work here: {type(error).__name__}: {fault}", do=do) from error
    return names
