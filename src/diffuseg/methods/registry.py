"""Methods by name: those that come with the package, and those of other packages."""

from collections.abc import Callable, Iterator, MutableMapping
from importlib.metadata import entry_points
from typing import TypeVar

from diffuseg.errors import UserError
from diffuseg.methods.ablations import AblatedCDAL
from diffuseg.methods.base import Method
from diffuseg.methods.concat import Concat
from diffuseg.methods.distributional import Distributional
from diffuseg.methods.medsegdiff import MedSegDiff
from diffuseg.methods.medsegdiff_v2 import MedSegDiffV2
from diffuseg.methods.ssn import SSN
from diffuseg.methods.unet import UNetMethod
from diffuseg.methods.weak.cam import CAM
from diffuseg.methods.weak.cdm import CDM

ENTRY_POINTS = "diffuseg.methods"  # the group: name = "package.module:Class"
M = TypeVar("M", bound=type[Method])


class Registry(MutableMapping[str, type[Method]]):
    """Name -> class. Entry points of installed packages are listed and imported when they are needed."""

    def __init__(self, methods: dict[str, type[Method]]) -> None:
        self._methods = methods
        self._installed: dict | None = None

    def _entry_points(self) -> dict:
        if self._installed is None:
            self._installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
        return {name: point for name, point in self._installed.items() if name not in self._methods}

    def __getitem__(self, name: str) -> type[Method]:
        if name not in self._methods:
            self._methods[name] = self._entry_points()[name].load()
        return self._methods[name]

    def __setitem__(self, name: str, cls: type[Method]) -> None:
        self._methods[name] = cls

    def __delitem__(self, name: str) -> None:
        del self._methods[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._methods, *self._entry_points()])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._methods or name in self._entry_points()

    def register(self, name: str) -> Callable[[M], M]:
        """A class decorator that adds a method, and so to the commands, to checkpoints and to the contract's tests.

        A module that is imported again may add its own class again.

        Args:
            name: what `diffuseg train --method` and checkpoints call it.

        Raises:
            UserError: another class has this name.
        """

        def add(cls: M) -> M:
            before = self._methods.get(name, cls)
            if (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
                what = f"a method {name!r} is there already: {before.__module__}.{before.__qualname__}"
                raise UserError(what, do="Choose another name.")
            self._methods[name] = cls
            return cls

        return add


METHODS = Registry(
    {
        "unet": UNetMethod,
        "ssn": SSN,
        "concat": Concat,
        "distributional": Distributional,
        "cdal": AblatedCDAL,
        "medsegdiff": MedSegDiff,
        "medsegdiff_v2": MedSegDiffV2,
        "cdm": CDM,
        "cam": CAM,
    }
)
register_method = METHODS.register
