"""Values out of bounds are refused in one form: what was given, and what it must be."""


def check_bound(given: str, holds: bool, bound: str) -> None:
    """Raise ValueError, "GIVEN is not allowed: it must be BOUND", unless `holds`.

    `given` names the value as its user does: "--lr -1.0", or "dim=0" for a field of a file.
    """
    if not holds:
        raise ValueError(f"{given} is not allowed: it must be {bound}")
