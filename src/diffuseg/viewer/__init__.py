"""A page to look at results: on a server of this machine alone, or as one file that needs none."""
