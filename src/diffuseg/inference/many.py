"""Many cases with one model: the next are read, one is computed, the one before is written, at the same time.

Results come in the order of the cases. A case that fails has its error in its place, and the others go on. No more than two
cases are read ahead, so memory does not grow with their number.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from diffuseg.atomic_io import check_writable
from diffuseg.data import io
from diffuseg.data.given import paths_of
from diffuseg.errors import UserError
from diffuseg.inference.prediction import Prediction
from diffuseg.inference.sampling import SCALE

AHEAD = 2  # cases that are read before they are needed
END = object()


class CaseResult(NamedTuple):
    """What became of one case: its prediction, or the error that it ended in; both where only its writing failed."""

    name: str
    prediction: Prediction | None
    error: Exception | None


def predict_many(
    model: Any, cases: Any, options: Any, out: Path | str | None, keywords: dict[str, Any]
) -> Iterator[CaseResult]:
    """Predictions of many cases in their order.

    Args:
        model: What segments them.
        cases: Cases as `Model.predict` takes them, or a mapping from name to case; an iterator is read as it is needed.
        options: How to draw, as `Model.predict`.
        out: A folder that mask, maps and record of each case are written to, see `Prediction.save`.
        keywords: Further arguments of `Model.predict`, for all cases.

    Raises:
        UserError: Cases that are a single one, or a folder that cannot be written.
    """
    if isinstance(cases, str | Path) or not isinstance(cases, Iterable):
        raise UserError(f"predict_many takes several cases, not {type(cases).__qualname__}", do="Give a list, or use predict")
    if out is not None:
        check_writable(out)
    return _results(model, cases, options, None if out is None else Path(out), dict(keywords))


def _results(
    model: Any, cases: Iterable[Any], options: Any, out: Path | None, keywords: dict[str, Any]
) -> Iterator[CaseResult]:
    geometry = {name: keywords.pop(name, None) for name in ("affine", "spacing")}
    geometry |= {name: keywords.get(name, getattr(options, name, None)) for name in SCALE}
    named, taken = _named(cases), set[str]()

    def read() -> Any:
        """The next case, (name, what was read or the error); runs in one thread, so the order stays."""
        try:
            name, case = next(named)
        except StopIteration:
            return END
        try:
            if out is not None and name in taken:
                raise UserError(f"a second case is called {name!r}", do="Give a mapping from name to case")
            taken.add(name)
            return name, model.read(case, **geometry), None
        except Exception as error:
            return name, None, error

    reader, writer = ThreadPoolExecutor(1, "diffuseg-read"), ThreadPoolExecutor(1, "diffuseg-write")
    try:
        waiting: deque[Future[Any]] = deque(reader.submit(read) for _ in range(AHEAD))
        written: Future[CaseResult] | None = None
        while (case := waiting.popleft().result()) is not END:
            waiting.append(reader.submit(read))
            name, read_case, error = case
            result = _predicted(model, name, read_case, error, options, keywords)
            del case, read_case  # what was read may go
            if written is not None:
                yield written.result()
            written = writer.submit(_written, result, out)
            if out is None:  # nothing to write: it need not wait for the next one
                yield written.result()
                written = None
        if written is not None:
            yield written.result()
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown()


def _predicted(model: Any, name: str, case: Any, error: Exception | None, options: Any, keywords: Any) -> CaseResult:
    if error is None:
        try:
            return CaseResult(name, model.predict(case, options, **keywords), None)
        except Exception as fault:
            error = fault
    return CaseResult(name, None, error)


def _written(result: CaseResult, out: Path | None) -> CaseResult:
    if out is None or result.prediction is None:
        return result
    try:
        result.prediction.save(out, result.name)
    except Exception as error:
        return result._replace(error=error)
    return result


def _named(cases: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Cases with their names: the keys of a mapping, those of files, or their numbers."""
    if isinstance(cases, Mapping):
        yield from ((str(name), case) for name, case in cases.items())
        return
    for number, case in enumerate(cases):
        yield _name_of(case) or f"case_{number:04d}", case


def _name_of(case: Any) -> str | None:
    paths = paths_of(case)
    name = paths[0].name if paths else str(getattr(case, "source", None) or "")
    try:
        return re.sub(r"_0000$", "", io.case_of(name, io.ending_of(name))) if name else None
    except UserError:
        return paths[0].name if paths else None
