"""Sizes as people write them.

    1GiB  64MiB  10k  1.5G  512  2 TiB    powers of 1024
    10MB  1.5GB                           powers of 1000: a B without an i is meant so

`format_size` prints what `parse_size` reads: the same number, if it has at most two decimals in its unit ("1.5 GiB");
else three digits of it, with their zeros ("1.00 GiB" is about one).
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final

import click

SIZE_MAX: Final = 1 << 62
_PREFIXES: Final = "KMGTPE"
_SIZE = re.compile(r"\s*(\d[\d_]*|\d{1,3}(?:,\d{3})+)?(\.\d+)?\s*(?:([kmgtpe])(i?b?)|b|bytes?)?\s*\Z", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes. ValueError, saying how it is written, for what is no size."""
    match = _SIZE.match(text)
    if not match or not (match[1] or match[2]):
        raise ValueError(f"{text!r} is not a size; write it as 64MiB, 1.5G or 5000.")
    base = 1000 if (match[4] or "").lower() == "b" else 1024
    unit = base ** (_PREFIXES.index(match[3].upper()) + 1) if match[3] else 1
    size = Decimal((match[1] or "0").replace("_", "").replace(",", "") + (match[2] or "")) * unit
    if size > SIZE_MAX:
        raise ValueError(f"{text!r} is more than {format_size(SIZE_MAX)}.")
    return int(size)


def format_size(size_bytes: int) -> str:
    """As short as it can be read: "812 B", "4 KiB", "1.5 GiB", "1.23 MiB"."""
    if size_bytes < 0:
        return "-" + format_size(-size_bytes)
    if size_bytes < 1024:
        return f"{size_bytes} B"
    power = min((size_bytes.bit_length() - 1) // 10, len(_PREFIXES))
    text = _in_unit(size_bytes, 1024**power)
    if text == "1024" and power < len(_PREFIXES):
        power, text = power + 1, "1.00"
    return f"{text} {_PREFIXES[power - 1]}iB"


def _in_unit(size_bytes: int, unit: int) -> str:
    if size_bytes * 100 % unit == 0:
        whole, hundredths = divmod(size_bytes * 100 // unit, 100)
        return f"{whole}.{hundredths:02}".rstrip("0").rstrip(".")
    value = Decimal(size_bytes) / unit
    return f"{value:.2f}" if value < Decimal("9.995") else f"{value:.1f}" if value < Decimal("99.95") else f"{value:.0f}"


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.2 on
    """A parameter that is a size."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
