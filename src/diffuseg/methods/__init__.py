"""One file reads like one paper."""
