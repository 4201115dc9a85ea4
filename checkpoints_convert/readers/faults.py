"""What is wrong with a file, in words that become one sentence for the user."""

OFFICIAL = "nothing of it was run; take the file from its official source"


class Fault(Exception):
    """A file is damaged, foreign or hostile.

    Attributes:
        found: what was expected and what was found, without a full stop.
        advice: what to do.
    """

    def __init__(self, found: str, advice: str = "the file is damaged or incomplete, download it again"):
        super().__init__(found)
        self.found = found
        self.advice = advice


class RefusedGlobal(Fault):
    """A pickle asks for a function or class that no public checkpoint needs."""

    def __init__(self, name: str):
        super().__init__(
            f"expected plain weights, but its pickle asks for {shown(name)}, which is not on the list of "
            "names that checkpoints need",
            OFFICIAL,
        )


def shown(value: object, length: int = 80) -> str:
    """A foreign value on one short line: escaped, cut, and never deeper than one tuple."""
    if (words := getattr(value, "words", None)) is not None:  # objects of ours describe themselves
        return words
    if isinstance(value, tuple):
        inside = ["…" if isinstance(item, tuple) else shown(item, 20) for item in value[:8]]
        return f"({', '.join(inside)}{', …' if len(value) > 8 else ''})"
    if not isinstance(value, (str, int, float, bytes, type(None))):
        return f"a {type(value).__name__}"
    text = value if isinstance(value, str) else repr(value)
    cut = text[:length]
    cut = cut if cut.isprintable() else ascii(cut)[1:-1]
    return cut if len(text) <= length else f"{cut}…"


class Budget:
    """Bounds the work that one file may cause, however its parts refer to each other."""

    def __init__(self, steps: int):
        self.left = steps

    def spend(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise Fault(
                "expected a checkpoint of some ten thousand values, but it unfolds to far more", OFFICIAL
            )
