"""Numbers as a person reads them: exact with separators, or short with a prefix; shares; durations."""

from __future__ import annotations

import math

NO_BREAK = "\N{NO-BREAK SPACE}"
_PREFIXES = ("", "k", "M", "B", "T", "Q")


def exact(count: float) -> str:
    """1234567 -> '1,234,567'."""
    return f"{int(count):,}"


def short(count: float) -> str:
    """Three digits and a prefix from 10,000 on: 9876 -> '9,876', 1234567 -> '1.23 M', 1.2e9 -> '1.20 B'."""
    if not math.isfinite(count):
        return "–"
    if abs(count) < 10_000:
        return exact(round(count))
    power = min(int(math.log10(abs(count)) // 3), len(_PREFIXES) - 1)
    text = _three_digits(count / 1000**power)
    if text == "1000" and power + 1 < len(_PREFIXES):  # 999,999 is 1.00 M, not 1000 k
        power, text = power + 1, "1.00"
    return f"{text}{NO_BREAK}{_PREFIXES[power]}"


def readable(count: float, digits: int = 7) -> str:
    """Exact while it has at most ``digits`` digits, short above."""
    return exact(count) if math.isfinite(count) and abs(count) < 10**digits else short(count)


def tick(count: float) -> str:
    """An axis label: '10 k', not '10.0 k'."""
    number, gap, prefix = short(count).partition(NO_BREAK)
    return (number.rstrip("0").rstrip(".") if "." in number else number) + gap + prefix


def share(part: float, whole: float) -> str:
    """'12.3 %'; a share that would round to nothing reads '< 0.01 %', never 0; no whole, no share: '–'."""
    if whole <= 0:
        return "–"
    percent = 100 * part / whole
    if percent == 0:
        return f"0{NO_BREAK}%"
    if percent < 0.01:
        return f"<{NO_BREAK}0.01{NO_BREAK}%"
    if part < whole and percent > 99.9:
        return f"{min(percent, 99.99):.2f}{NO_BREAK}%"
    digits = 2 if percent < 1 else 1
    return f"{percent:.{digits}f}".removesuffix(".0") + f"{NO_BREAK}%"


def rate(count: float, seconds: float) -> str:
    """Count per second, '–' where there was neither work nor time."""
    if seconds <= 0 or count <= 0:
        return "–"
    value = count / seconds
    return short(value) if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """0.42 s, 42 s, 3 min 12 s, 2 h 05 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.2g}{NO_BREAK}s" if seconds else f"0{NO_BREAK}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NO_BREAK}s"
    if whole < 3600:
        return f"{whole // 60}{NO_BREAK}min{NO_BREAK}{whole % 60:02d}{NO_BREAK}s"
    if whole < 48 * 3600:
        return f"{whole // 3600}{NO_BREAK}h{NO_BREAK}{whole % 3600 // 60:02d}{NO_BREAK}min"
    return f"{whole // 86400}{NO_BREAK}d{NO_BREAK}{whole % 86400 // 3600}{NO_BREAK}h"


def _three_digits(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"
