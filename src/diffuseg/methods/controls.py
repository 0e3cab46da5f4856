"""What can be left out of a method to see whether it is worth anything: method -> name -> (what, settings as --set has them).

`diffuseg audit --retrain` trains each of them once more; a method without an entry has no control of its own.
"""

_NO_RECYCLING = ("no recycling: x_t in training always from the true mask", "recycle=0")

CONTROLS: dict[str, dict[str, tuple[str, str]]] = {
    "cdal": {
        "x_noise": ("x_t is pure noise in training and sampling", "x_t=noise"),
        "x_other": ("x_t in training from another case's mask, no recycling", "x_t=other_case recycle=0"),
        "no_recycling": _NO_RECYCLING,
        "no_latent": ("no latent", "latent=0"),
        "no_adversary": ("no adversary", "adversarial=0"),
    },
    "medsegdiff": {
        "no_encoding": ("no dynamic conditional encoding", "dce=off"),
        "no_parser": ("no FF-Parser", "ff_parser=false"),
        "no_recycling": _NO_RECYCLING,
    },
    "medsegdiff_v2": {
        "no_anchor": ("no anchor condition", "anchor=false"),
        "no_former": ("no SS-Former", "ss_former=false"),
        "no_recycling": _NO_RECYCLING,
    },
}
