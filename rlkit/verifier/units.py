"""Units beside a number: what they measure, how large they are, and which words are none."""

from __future__ import annotations

import re
from fractions import Fraction

_KNOWN = (  # names of a unit, its dimension, and what one of it is in the dimension's base unit
    ("mm millimeter millimeters millimetre millimetres", "length", "1/1000"),
    ("cm centimeter centimeters centimetre centimetres", "length", "1/100"),
    ("m meter meters metre metres", "length", "1"),
    ("km kilometer kilometers kilometre kilometres", "length", "1000"),
    ("in inch inches", "length", "127/5000"),
    ("ft foot feet", "length", "381/1250"),
    ("yd yard yards", "length", "1143/1250"),
    ("mi mile miles", "length", "201168/125"),
    ("s sec secs second seconds", "time", "1"),
    ("min mins minute minutes", "time", "60"),
    ("h hr hrs hour hours", "time", "3600"),
    ("day days", "time", "86400"),
    ("week weeks", "time", "604800"),
    ("month months", "months", "1"),
    ("year years yr yrs", "months", "12"),
    ("g gram grams", "mass", "1"),
    ("kg kilogram kilograms", "mass", "1000"),
    ("mg milligram milligrams", "mass", "1/1000"),
    ("lb lbs pound pounds", "pounds", "1"),
    ("oz ounce ounces", "pounds", "1/16"),
    ("dollar dollars usd", "money", "1"),
    ("cent cents", "money", "1/100"),
    ("euro euros", "euro", "1"),
    ("l liter liters litre litres", "volume", "1"),
    ("ml milliliter milliliters", "volume", "1/1000"),
    ("gallon gallons gal", "gallon", "1"),
    ("mph", "mph", "1"),
    ("radian radians rad", "radian", "1"),
    ("acre acres", "acre", "1"),
)
UNITS = {name: (dimension, Fraction(size)) for names, dimension, size in _KNOWN for name in names.split()}
LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# words that change what a number says, so that they are no unit
NO_UNIT = frozenset(
    "not no maybe perhaps probably possibly unsure sure or either but if unless except wrong incorrect is isn't was could plus minus times "
    "more less than least most dozen half mod modulo and to through between then with without when where for undefined nor neither".split()
)
SINGLE_LETTERS = {"m", "s", "g", "h", "l"}

_QUANTITY = r"(\d[\d,]*(?:\.\d+)?)\s?([A-Za-z]{1,12})\.?"
_GOES_ON = rf"\s?(,|,?\s?and\b|&)?\s?{_QUANTITY}"
_COMPOUND = re.compile(rf"(-?)\s?{_QUANTITY}(?:{_GOES_ON})(?:{_GOES_ON})?", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|mathrm|mbox)\s?\{([^{}]*)\}")


def continues(large: str, small: str, count: str, comma: bool = False) -> bool:
    """Whether ``count`` of one unit go on from another: 20 minutes behind hours, 3 inches behind feet, but not 90 minutes, nor 2 feet.

    Behind a ``comma`` only of time; "3 m, 50 cm" may be two lengths.
    """
    one, two = UNITS.get(large.casefold()), UNITS.get(small.casefold())
    if one is None or two is None or one[0] != two[0] or (comma and one[0] not in ("time", "months")):
        return False
    return two[1] < one[1] and Fraction(count.replace(",", "")) * two[1] < one[1]


def compound(text: str) -> tuple[Fraction, str] | None:
    """The sum and the unit of a quantity in several: 3 hours and 20 minutes are 200 minutes, 5 dollars and 25 cents 5.25 dollars."""
    plain = " ".join(_TEXT.sub(r" \1 ", text).split()) if "\\" in text else text
    found = _COMPOUND.fullmatch(plain)
    if found is None:
        return None
    sign, *parts = found.groups()
    quantities = [(parts[0], parts[1])]
    for mark, count, unit in (parts[2:5], parts[5:8]):
        if count is None:
            continue
        before, large = quantities[-1]
        if "." in before or not continues(large, unit, count, mark == ","):
            return None
        quantities.append((count, unit))
    total = sum((Fraction(n.replace(",", "")) * UNITS[u.casefold()][1] for n, u in quantities), Fraction(0))
    # a price is told in dollars, all else in the smallest of its units
    unit = (quantities[0] if UNITS[quantities[0][1].casefold()][0] == "money" else quantities[-1])[1]
    return total / UNITS[unit.casefold()][1] * (-1 if sign else 1), unit


def unit_of(text: str) -> tuple[str, Fraction] | None:
    """Dimension and size of a unit as written after a number ("sq. cm", "inches^2", "cubic feet"), or None if it is not known."""
    s = re.sub(r"[{}.\\]", " ", text.casefold()).strip()
    clock = re.fullmatch(r"([ap]) ?m", s)
    if clock:
        return f"{clock[1]}.m.", Fraction(1)
    s = re.sub(r"\s+", " ", s)
    power_of = 1
    for word, n in (("square ", 2), ("sq ", 2), ("cubic ", 3), ("cu ", 3)):
        if s.startswith(word):
            s, power_of = s[len(word) :], n
    found = re.fullmatch(r"([a-z]+) ?(?:\^ ?([23])|(squared|cubed))?", s)
    if not found:
        return None
    if found[2] or found[3]:
        power_of = int(found[2] or {"squared": 2, "cubed": 3}[found[3]])
    unit = UNITS.get(found[1])
    return None if unit is None else (f"{unit[0]}^{power_of}", unit[1] ** power_of)
