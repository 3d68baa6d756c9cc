"""Numbers and times in words, for people."""

from datetime import UTC, datetime


def ago(at: str | None, now: datetime | None = None) -> str:
    """How long ago a moment was (ISO 8601); "never" where there was none."""
    if at is None:
        return "never"
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(at)).total_seconds()
    return "now" if seconds < 1.0 else f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """A span of time by its greatest unit, as 20 ms, 12 s, 3 min, 5 h, 2 d."""
    if 0.0 < seconds < 0.5:
        return f"{max(1.0, 1000.0 * seconds):.0f} ms"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def signed(nats: float | None) -> str:
    return "not known" if nats is None else f"{nats:+.3f}"


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:+.3f}, {high:+.3f}]"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def visible(text: str) -> str:
    """The text with its control characters spelled out: a terminal would obey them."""
    return "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in text)
