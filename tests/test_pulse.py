"""Signs of life: often enough that nobody takes a long work for dead, seldom enough to be read."""

from diffuseg.pulse import Pulse, beat, duration, watching


def lines(seconds: float, steps: int) -> list[float]:
    """When lines are due in a work of so many seconds in so many steps."""
    now = [0.0]
    pulse, due = Pulse(clock=lambda: now[0]), []
    for step in range(1, steps + 1):
        now[0] = seconds * step / steps
        if pulse.due(step / steps):
            due.append(now[0])
    return due


def test_a_line_is_due_at_once_then_at_each_tenth_or_after_a_minute():
    assert lines(200, 100) == [2, *range(20, 201, 20)]
    hours = lines(7200, 7200)
    assert hours[0] == 1 and max(b - a for a, b in zip(hours, hours[1:], strict=False)) <= 60 and len(hours) <= 130
    assert lines(2, 100) == [0.02]  # quick work does not flood


def test_the_time_left_is_that_of_the_pace_so_far():
    now = [0.0]
    pulse = Pulse(clock=lambda: now[0])
    assert pulse.due(0.5) and pulse.left(0.5) == ""  # a resumed work: the first half was not done now
    now[0] = 60
    assert pulse.left(0.75) == "0:01:00 left"
    assert duration(3725.4) == "1:02:05" and duration(-1.0) == "0:00:00"


def test_beats_reach_whoever_watches_and_nobody_else():
    seen = []
    beat(1.0)
    with watching(seen.append):
        beat(0.25)
    beat(1.0)
    assert seen == [0.25]
