"""Numbers in sentences."""


def pluralize(number: int, one: str, several: str | None = None) -> str:
    """A number with its noun, "1 case", "2 cases"; `several` where the plural is not one with -s, or a verb goes along."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"
