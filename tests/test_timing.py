"""Time is given to the innermost part that is running, and adds up to the whole."""

import threading

import pytest

from diffuseg import timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told otherwise."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_what_is_inside_counts_there_and_all_adds_up(clock):
    @timing.timed("write")
    def write() -> None:
        clock(2)

    said: list[str] = []
    with timing.profile(said.append) as spent:
        clock(1)
        with timing.timed("denoise"):
            clock(4)
            with timing.timed("encode"):
                clock(8)
            clock(16)
        write()
        write()
    assert spent == {"other": 1, "denoise": 20, "encode": 8, "write": 4}
    assert said == ["33.0 s: denoise 61%, encode 24%, write 12%, other 3%"]


def test_nothing_is_measured_unless_it_is_asked_for(clock):
    with timing.timed("read"):
        clock(1)
    with timing.profile(print) as spent:
        clock(3)
    with timing.timed("read"), timing.profile(None) as nothing:
        clock(5)
    assert spent == {"other": 3} and nothing == {}


def test_other_threads_are_not_counted(clock):
    def read() -> None:
        with timing.timed("read"):
            clock(2)

    with timing.profile(print) as spent:
        with timing.timed("wait"):
            thread = threading.Thread(target=read)
            thread.start()
            thread.join()
        clock(1)
    assert spent == {"other": 1, "wait": 2}


def test_a_fault_inside_leaves_the_rest_right(clock):
    with timing.profile(print) as spent:
        with pytest.raises(ValueError, match="broken"), timing.timed("read"):
            clock(2)
            raise ValueError("broken")
        clock(3)
    assert spent == {"other": 3, "read": 2}
