"""What an installation takes on the disk."""

from benchmarks.tables.grid import load


def install() -> str:
    """One sentence."""
    found = load("install")
    gigabytes = lambda key: f"{found[key] / 1e9:.1f} GB"
    python = ".".join(found["python"].split(".")[:2])
    return (
        f"With the CPU build of PyTorch this is {len(found['packages'])} packages and about {gigabytes('bytes')} on disk, "
        f"of which PyTorch takes {gigabytes('bytes_of_torch')} (counted on {found['system']}, Python {python}).\n"
    )
