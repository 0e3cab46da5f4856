"""Many small cases, in one process, in one command each, and in shards."""

from benchmarks.tables.grid import grid, load


def many() -> str:
    """What was measured, how often, and what came of it."""
    found = load("many")
    held, alone = (f"{1000 * found[name]:.0f} ms" for name in ("held_seconds", "alone_seconds"))
    wrong = f"{found['lost']} lost, {found['differ']} of {found['files']} files unlike those of one process"
    killed = (
        f"{found['shards']} shards, one killed after {found['had_when_killed']} of its cases and started again, then merged"
    )
    rows = [
        ["one command for all, which holds the model", str(found["cases"]), f"{held} of the processor for each"],
        [
            "one command for each",
            str(found["commands"]),
            f"{alone} of the processor for each: {found['ratio']:.1f} times as much",
        ],
        [killed, str(found["cases"]), wrong],
    ]
    return grid(["how", "cases", "result"], rows)
