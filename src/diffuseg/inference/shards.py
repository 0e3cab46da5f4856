"""Which cases of a list one process of several does: a fixed share of the sorted list, 1/4 to 4/4."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from diffuseg.errors import UserError

T = TypeVar("T")
COMPLETIONS = "JOB_COMPLETIONS"  # Kubernetes tells a pod its index, and not how many there are: the manifest has to
GIVE = "Give --shard 1/N to --shard N/N, one to each process"


@dataclass(frozen=True)
class Shard:
    """One share of several; every case of a list is in exactly one of shards 1/count to count/count.

    index   counts from 1
    source  where the numbers are from, where they were not given as such
    """

    index: int
    count: int
    source: str = ""

    def of(self, items: Sequence[T]) -> list[T]:
        """Its share of a sorted list: every count-th item, from the index-th on."""
        return list(items[self.index - 1 :: self.count])

    def then(self, out: Path) -> str:
        """One line: what is left to do."""
        return f"when all are through: diffuseg merge {out}"

    def turns(self, cases: Sequence[str], out: Path) -> Iterator[str]:
        """The cases that it does, of a sorted list."""
        yield from self.of(cases)

    def total(self, cases: Sequence[str]) -> int:
        """How many these are."""
        return len(self.of(cases))

    @property
    def name(self) -> str:
        """As it is asked for."""
        return f"{self.index}/{self.count}"

    @property
    def division(self) -> str:
        """What all processes of one list have in common."""
        return f"{self.count} shards"

    def announce(self) -> str:
        """One line: which shard, and how it is known."""
        return f"shard {self.name}" + (f", from {self.source}" if self.source else "")


def read_shard(text: str) -> Shard:
    """The shard that "2/4" or "auto" asks for.

    Raises:
        UserError: It is no such shard, or with "auto" nothing, or more than one thing, says which one.
    """
    if text == "auto":
        return shard_of_environment(os.environ)
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if match is None:
        raise UserError(f"--shard {text}: expected a shard such as 2/4, or auto, or claim", do=GIVE)
    index, count = int(match[1]), int(match[2])
    if count < 1 or not 1 <= index <= count:
        raise UserError(f"--shard {text}: shards count from 1, so {_range(count)}", do=GIVE)
    return Shard(index, count)


def shard_of_environment(environment: Mapping[str, str]) -> Shard:
    """The shard that a SLURM array or step, an indexed Kubernetes job or torchrun gives this process.

    Raises:
        UserError: None of them is there, one of them is incomplete, or two of them tell of several processes.
    """
    found = [shard for read in (_slurm_array, _kubernetes, _ranks, _slurm_step) if (shard := read(environment)) is not None]
    several = [shard for shard in found if shard.count > 1]
    if len(several) > 1:
        both = " and ".join(shard.source for shard in several)
        raise UserError(f"--shard auto: {both} both tell of several processes, and which one counts is not known", do=GIVE)
    if not found:
        names = "SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX, RANK and SLURM_PROCID are not set"
        raise UserError(f"--shard auto: nothing says which shard this is ({names})", do=GIVE)
    return (several or found)[0]


def _slurm_array(environment: Mapping[str, str]) -> Shard | None:
    """A task of a job array; its numbers may begin anywhere and rise in steps, but without gaps."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
    task, first, count = (_number(environment, name) for name in names)
    step = _number(environment, "SLURM_ARRAY_TASK_STEP") if "SLURM_ARRAY_TASK_STEP" in environment else 1
    last = _number(environment, "SLURM_ARRAY_TASK_MAX") if "SLURM_ARRAY_TASK_MAX" in environment else first + step * (count - 1)
    if last != first + step * (count - 1) or (task - first) % step or not first <= task <= last:
        what = f"--shard auto: a job array of {count} tasks from {first} to {last} has gaps"
        raise UserError(what, do="Use an array such as 1-8, or --shard i/n")
    return Shard((task - first) // step + 1, count, f"SLURM_ARRAY_TASK_ID {task} of {count} from {first}")


def _kubernetes(environment: Mapping[str, str]) -> Shard | None:
    return _from_zero(environment, "JOB_COMPLETION_INDEX", COMPLETIONS)


def _ranks(environment: Mapping[str, str]) -> Shard | None:
    return _from_zero(environment, "RANK", "WORLD_SIZE")


def _slurm_step(environment: Mapping[str, str]) -> Shard | None:
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    return _from_zero(environment, "SLURM_PROCID", count)


def _from_zero(environment: Mapping[str, str], index_name: str, count_name: str) -> Shard | None:
    """The shard of a number that counts from 0."""
    if index_name not in environment:
        return None
    index, count = _number(environment, index_name), _number(environment, count_name, beside=index_name)
    if not 0 <= index < count:
        raise UserError(f"--shard auto: {index_name} is {index}, but {count_name} is {count}", do=GIVE)
    return Shard(index + 1, count, f"{index_name} {index} of {count_name} {count}")


def _number(environment: Mapping[str, str], name: str, beside: str = "SLURM_ARRAY_TASK_ID") -> int:
    value = environment.get(name)
    if value is None:
        what = f"--shard auto: {beside} is set, but {name} is not: how many there are is not known"
        raise UserError(what, do=f"Set {name} too, or give --shard i/n")
    try:
        return int(value)
    except ValueError:
        raise UserError(f"--shard auto: {name} is {value!r}, which is no whole number", do=GIVE) from None


def _range(count: int) -> str:
    return f"they are 1/{count} to {count}/{count}" if count > 1 else "a single one is 1/1"
