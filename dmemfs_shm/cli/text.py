"""Ages, counts and names in people's terms."""

from __future__ import annotations

import datetime as dt
import os
import pwd


def age(since: float, now: float) -> str:
    """How long ago, in its two largest units: "8 s", "3 min 20 s", "5 h 2 min", "12 days"."""
    seconds = int(now - since)
    if since <= 0 or seconds > 200 * 365 * 86400:
        return "?"
    if seconds < 1:
        return "now"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 1:
        return f"{seconds} s"
    if hours < 1:
        return _two(minutes, "min", seconds % 60, "s") if minutes < 10 else f"{minutes} min"
    if days < 2:
        return _two(hours, "h", minutes % 60, "min") if hours < 10 else f"{hours} h"
    return f"{days} days"


def ago(since: float, now: float) -> str:
    """`age` in a sentence."""
    text = age(since, now)
    return "just now" if text == "now" else f"{text} ago"


def _two(large: int, unit: str, small: int, part: str) -> str:
    return f"{large} {unit} {small} {part}" if small else f"{large} {unit}"


def moment(seconds: float) -> str:
    """A time in the local time zone, to the second."""
    try:
        return dt.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return "?"


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 file, 1,234 files."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def user(uid: int) -> str:
    """A user's name, or the number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def printable(text: str) -> str:
    """The text without anything that a terminal would obey or a stream could not encode."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def raw(name: str) -> bytes:
    """A name as the shell would give it back to us."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")
