"""Damage from a seed: to bytes, to the values of JSON and YAML, to lines of text, to FITS cards."""

import json
import math
import re
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

_DEEP = "nested-deeply"  # stands for what the writers of JSON and YAML could not nest themselves
_DEPTH = 20_000
_CARD = 80

_VALUES: tuple[Any, ...] = (
    None, "", -1, 0, 1, 2, 7, 1.5, 1e308, -1e308, 1e12, math.nan, math.inf, -math.inf,
    2**31, 2**31 - 1, 2**63, -(2**63), 10**12, 10**400, True, False, [], {}, [None], [[]],
    [1, 2, 3], {"a": 1}, {"": None}, "x", "0", "NaN", "a\nb", "\x1b[2J\x00", "é\u2028",
    "../../../etc/passwd", "/etc/passwd", "..", "x" * 5000, _DEEP,
)  # fmt: skip

_SNIPPETS = (
    "null", "''", "-1", "0", "1.0e+308", ".nan", ".inf", "9" * 30, "9" * 5000, "true", "[]", "{}",
    "[1, [2]]", "{a: {b: c}}", "!!int ''", "!!int x", "!!float ''", "!!bool x", "!!timestamp x",
    "!!binary '%'", "!!set {a}", "!!omap [a]", "!!python/object/apply:os.getcwd []",
    "2001-99-99", "1:2:3", "&x [*x]", "*unknown", "{? [a] : b}", "[" * 3000,
    "\t", "%", "'", '"\\x"',
    "{a: &b [x,x,x,x,x,x], c: &d [*b,*b,*b,*b,*b,*b], e: &f [*d,*d,*d,*d,*d,*d], "
    "g: &h [*f,*f,*f,*f,*f,*f], i: &j [*h,*h,*h,*h,*h,*h], k: &l [*j,*j,*j,*j,*j,*j], "
    "m: &n [*l,*l,*l,*l,*l,*l], o: &p [*n,*n,*n,*n,*n,*n], q: &r [*p,*p,*p,*p,*p,*p], "
    "s: [*r,*r,*r,*r,*r,*r]}",
    "!core/ndarray-1.1.0 {source: 99, datatype: float32, byteorder: little, shape: [80, 80]}",
    "!core/ndarray-1.1.0 {source: http://127.0.0.1:9/x, datatype: float32, shape: [8]}",
    "!core/ndarray-1.1.0 {source: 0, datatype: float32, byteorder: little, "
    "shape: [100000, 100000], strides: [0, 0]}",
    "!core/ndarray-1.1.0 {source: 0, datatype: [ascii, 4], byteorder: little, shape: [4, 4]}",
    "!core/ndarray-1.1.0 [[1, 2], [3, 4]]", "!core/complex-1.0.0 1+1j", "!unit/unit-1.0.0 Jy",
    "!core/external-1.0.0 {datatype: uint8, fileuri: /etc/passwd, shape: [2], target: x}",
)  # fmt: skip

_CARD_VALUES = (
    "", "T", "F", "0", "1", "-1", "2", "3", "8", "16", "-32", "-64", "32", "7", "-5760", "-2880",
    "999", "1000", "64000", "2147483647", "999999999999", "1E308", "-1E308", "1E999", "NaN",
    "1E-300", "0.0", "'x'", "''", "'RA---TAN'", "'DEC--SIP'", "'GLON-CAR'", "'STOKES'", "'unclosed",
    "'IMAGE'", "'BINTABLE'", "'TABLE'", "'GZIP_1'", "'RICE_1'", "'HCOMPRESS_1'", "'1PB(99)'",
    "'1QJ(1)'", "'100000J'", "(1,2)", "1D5", "&", "'deg'", "'MJy/sr'", "'10**9999 Jy'", "'SCI'",
    "'ERR'", "'F814W'", "'F606W'", "'ICRS'", "'FK5'", "'ALTAZ'", "\xff",
)  # fmt: skip

_KEYS = (
    "NAXIS", "NAXIS3", "PCOUNT", "GCOUNT", "BSCALE", "BLANK", "CTYPE1", "CD1_1", "PV1_1",
    "A_ORDER", "ZNAXIS1", "ZTILE1", "BUNIT", "CPDIS1", "EXTNAME", "FILTER", "TFIELDS", "TDIM1",
)  # fmt: skip


def mangle(content: bytes, rng: Random) -> bytes:
    """Truncate, flip bits, overwrite, delete, insert or repeat a stretch of bytes."""
    n = len(content)
    if n == 0:
        return rng.randbytes(rng.randint(0, 16))
    start = rng.randrange(n)
    length = min(n - start, rng.choice((1, 2, 4, 8, 64, 512, n)))
    before, stretch, after = content[:start], content[start : start + length], content[start:]
    after = after[length:]
    kind = rng.randrange(8)
    if kind == 0:
        return before
    if kind <= 2:
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            damaged[rng.randrange(n)] ^= 1 << rng.randrange(8)
        return bytes(damaged)
    if kind == 3:
        fill = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
        return before + fill + after
    if kind == 4:
        return before + after
    if kind == 5:
        return before + rng.randbytes(rng.choice((1, 4, 80, 2880))) + stretch + after
    if kind == 6:
        return before + stretch + stretch + after
    # Small integers are lengths, counts and offsets: the ends of their ranges reach far.
    width = rng.choice((1, 2, 4, 8))
    number = rng.choice(
        (0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1)
    )
    order = rng.choice(("little", "big"))
    return (before + number.to_bytes(width, order) + content[start + width :])[:n]


def mutate_value(document: Any, rng: Random) -> Any:
    """Change, delete, add, swap or nudge one value somewhere in a document, in place."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if not isinstance(document, dict | list) or not document:
        return rng.choice(_VALUES)
    walk(document)
    node, key = rng.choice(places)
    kind = rng.randrange(10)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice(("unknown", "", "Name", "a\nb", str(key).upper()))] = rng.choice(_VALUES)
    elif kind == 2:
        other, other_key = rng.choice(places)
        node[key], other[other_key] = other[other_key], node[key]
        if _is_circular(document):
            node[key] = None
    elif kind <= 4:
        node[key] = _nudged(node[key], rng)
    elif kind == 5 and isinstance(node[key], list) and node[key]:
        node[key] = rng.choice((node[key] * 2, node[key][:-1], node[key][::-1]))
    else:
        node[key] = rng.choice(_VALUES)
    return document


def _is_circular(document: Any) -> bool:
    try:
        json.dumps(document, default=str)
    except (ValueError, RecursionError):
        return True
    return False


def _nudged(value: Any, rng: Random) -> Any:
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        letter = chr(rng.randrange(32, 127))
        return rng.choice((value[:at] + letter + value[at + 1 :], value[:at], value.upper()))
    if isinstance(value, int | float):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, str(value)))
    return rng.choice(_VALUES)


def mutate_json(content: bytes, rng: Random, reseal: Callable[[Any], Any] | None = None) -> bytes:
    """Change one value of a JSON file.

    Args:
        reseal: puts the document's own checksum right again.
    """
    document = mutate_value(json.loads(content), rng)
    return to_json(document if reseal is None else reseal(document))


def to_json(document: Any) -> bytes:
    deep = "[" * _DEPTH + "]" * _DEPTH
    return json.dumps(document).replace(f'"{_DEEP}"', deep).encode()


def mutate_jsonl(content: bytes, rng: Random) -> bytes:
    """Change one value of one line of JSON lines, or the lines' order."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        lines.insert(at, rng.choice(lines))
    elif kind == 1:
        lines[at] = rng.choice(
            (b"\n", b"null\n", b"[]\n", b"5\n", b"{}\n", b"\xff\xfe\n", b'{"a":\n')
        )
    else:
        lines[at] = mutate_json(lines[at], rng) + b"\n"
    return b"".join(lines)


def mutate_yaml(content: bytes, rng: Random) -> bytes:
    """Change one value of a YAML file, or one of its lines."""
    if rng.random() < 0.4:
        return mutate_lines(content, rng)
    document = mutate_value(yaml.safe_load(content), rng)
    text = yaml.dump(document, allow_unicode=True)
    return text.replace(_DEEP, "[" * _DEPTH + "]" * _DEPTH).encode()


def mutate_lines(content: bytes, rng: Random, end: int | None = None) -> bytes:
    """Change, delete, repeat, move or indent one line of a text.

    Args:
        end: bytes of the text; what follows is left as it is.
    """
    lines = content[:end].splitlines(keepends=True)
    rest = b"" if end is None else content[end:]
    at = rng.randrange(len(lines))
    kind = rng.randrange(10)
    snippet = rng.choice(_SNIPPETS).encode()
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif kind == 2:
        lines[at] = rng.choice((b" ", b"  ", b"\t", b"- ")) + lines[at]
    elif kind == 3:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 4:
        lines.insert(at, snippet + b"\n")
    else:
        # Any scalar, also one within [...] or {...}.
        scalars = list(re.finditer(rb"(?<=[:\-,\[] )[^,\]\}\n]+|(?<=\[)[^,\]\n]+", lines[at]))
        if scalars:
            scalar = rng.choice(scalars)
            line = lines[at]
            lines[at] = line[: scalar.start()] + snippet + line[scalar.end() :]
        else:
            lines[at] = snippet + b"\n"
    return b"".join(lines) + rest


def mutate_fits(content: bytes, rng: Random) -> bytes:
    """Change, delete, repeat, rename or swap a card of any header of a FITS file."""
    cards = [
        at
        for at in range(0, len(content) - _CARD + 1, _CARD)
        if re.match(rb"[A-Z][A-Z0-9_-]{0,7} *= ", content[at : at + _CARD])
    ]
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2))):
        at, other = rng.choice(cards), rng.choice(cards)
        card, key = content[at : at + _CARD], content[at : at + 8]
        kind = rng.randrange(10)
        if kind == 0:
            card = b"COMMENT".ljust(_CARD)
        elif kind == 1:
            damaged[at : at + _CARD] = content[other : other + _CARD]
            at, card = other, content[at : at + _CARD]
        elif kind == 2:
            at = other
        elif kind == 3:
            card = rng.choice(_KEYS).encode().ljust(8) + card[8:]
        else:
            value = rng.choice(_CARD_VALUES).encode("latin-1")
            card = (key + b"= " + value.rjust(20)).ljust(_CARD)[:_CARD]
        damaged[at : at + _CARD] = card
    return bytes(damaged)
