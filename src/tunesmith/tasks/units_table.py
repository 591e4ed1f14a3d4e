"""The units that the ``units`` task converts between, and the exact factors.

The factors are pint's, written down as exact fractions so that no registry has to be built at
start-up; a test compares every row with pint. Temperatures are left out on purpose: they are
affine (an offset besides the factor), so «number times factor» would be wrong for them. Data sizes
follow pint: kilo, mega and giga are powers of 1000, kibi, mebi and gibi powers of 1024.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Conversion:
    """One direction between two units: target = source × factor."""

    family: str
    source: str
    """pint's name of the unit."""
    target: str
    exact: str
    """The factor as a fraction."""

    @property
    def factor(self) -> Fraction:
        """Return the exact factor."""
        return Fraction(self.exact)


_PLURALS = {
    "inch": "inches",
    "foot": "feet",
    "stone": "stone",
    "mile_per_hour": "miles per hour",
    "kilometer_per_hour": "kilometers per hour",
    "meter_per_second": "meters per second",
    "foot_per_second": "feet per second",
}


def singular(unit: str) -> str:
    """Return the unit's name after «one»."""
    return unit.replace("_", " ")


def plural(unit: str) -> str:
    """Return the unit's name after any other number."""
    return _PLURALS.get(unit, singular(unit) + "s")


CONVERSIONS: tuple[Conversion, ...] = (
    Conversion("length", "inch", "centimeter", "127/50"),
    Conversion("length", "centimeter", "inch", "50/127"),
    Conversion("length", "foot", "inch", "12"),
    Conversion("length", "inch", "foot", "1/12"),
    Conversion("length", "foot", "meter", "381/1250"),
    Conversion("length", "meter", "foot", "1250/381"),
    Conversion("length", "yard", "foot", "3"),
    Conversion("length", "foot", "yard", "1/3"),
    Conversion("length", "yard", "meter", "1143/1250"),
    Conversion("length", "meter", "yard", "1250/1143"),
    Conversion("length", "mile", "kilometer", "25146/15625"),
    Conversion("length", "kilometer", "mile", "15625/25146"),
    Conversion("length", "mile", "foot", "5280"),
    Conversion("length", "foot", "mile", "1/5280"),
    Conversion("length", "meter", "centimeter", "100"),
    Conversion("length", "centimeter", "meter", "1/100"),
    Conversion("length", "meter", "millimeter", "1000"),
    Conversion("length", "millimeter", "meter", "1/1000"),
    Conversion("length", "centimeter", "millimeter", "10"),
    Conversion("length", "millimeter", "centimeter", "1/10"),
    Conversion("length", "kilometer", "meter", "1000"),
    Conversion("length", "meter", "kilometer", "1/1000"),
    Conversion("mass", "pound", "ounce", "16"),
    Conversion("mass", "ounce", "pound", "1/16"),
    Conversion("mass", "pound", "kilogram", "45359237/100000000"),
    Conversion("mass", "kilogram", "pound", "100000000/45359237"),
    Conversion("mass", "ounce", "gram", "45359237/1600000"),
    Conversion("mass", "gram", "ounce", "1600000/45359237"),
    Conversion("mass", "kilogram", "gram", "1000"),
    Conversion("mass", "gram", "kilogram", "1/1000"),
    Conversion("mass", "gram", "milligram", "1000"),
    Conversion("mass", "milligram", "gram", "1/1000"),
    Conversion("mass", "stone", "pound", "14"),
    Conversion("mass", "pound", "stone", "1/14"),
    Conversion("mass", "stone", "kilogram", "317514659/50000000"),
    Conversion("mass", "kilogram", "stone", "50000000/317514659"),
    Conversion("volume", "gallon", "liter", "473176473/125000000"),
    Conversion("volume", "liter", "gallon", "125000000/473176473"),
    Conversion("volume", "gallon", "quart", "4"),
    Conversion("volume", "quart", "gallon", "1/4"),
    Conversion("volume", "quart", "pint", "2"),
    Conversion("volume", "pint", "quart", "1/2"),
    Conversion("volume", "pint", "cup", "2"),
    Conversion("volume", "cup", "pint", "1/2"),
    Conversion("volume", "cup", "fluid_ounce", "8"),
    Conversion("volume", "fluid_ounce", "cup", "1/8"),
    Conversion("volume", "liter", "milliliter", "1000"),
    Conversion("volume", "milliliter", "liter", "1/1000"),
    Conversion("volume", "tablespoon", "teaspoon", "3"),
    Conversion("volume", "teaspoon", "tablespoon", "1/3"),
    Conversion("volume", "fluid_ounce", "milliliter", "473176473/16000000"),
    Conversion("volume", "milliliter", "fluid_ounce", "16000000/473176473"),
    Conversion("time", "minute", "second", "60"),
    Conversion("time", "second", "minute", "1/60"),
    Conversion("time", "hour", "minute", "60"),
    Conversion("time", "minute", "hour", "1/60"),
    Conversion("time", "day", "hour", "24"),
    Conversion("time", "hour", "day", "1/24"),
    Conversion("time", "week", "day", "7"),
    Conversion("time", "day", "week", "1/7"),
    Conversion("time", "hour", "second", "3600"),
    Conversion("time", "second", "hour", "1/3600"),
    Conversion("time", "year", "month", "12"),
    Conversion("time", "month", "year", "1/12"),
    Conversion("time", "second", "millisecond", "1000"),
    Conversion("time", "millisecond", "second", "1/1000"),
    Conversion("speed", "mile_per_hour", "kilometer_per_hour", "25146/15625"),
    Conversion("speed", "kilometer_per_hour", "mile_per_hour", "15625/25146"),
    Conversion("speed", "meter_per_second", "kilometer_per_hour", "18/5"),
    Conversion("speed", "kilometer_per_hour", "meter_per_second", "5/18"),
    Conversion("speed", "knot", "kilometer_per_hour", "463/250"),
    Conversion("speed", "kilometer_per_hour", "knot", "250/463"),
    Conversion("speed", "foot_per_second", "meter_per_second", "381/1250"),
    Conversion("speed", "meter_per_second", "foot_per_second", "1250/381"),
    Conversion("data", "byte", "bit", "8"),
    Conversion("data", "bit", "byte", "1/8"),
    Conversion("data", "kilobyte", "byte", "1000"),
    Conversion("data", "byte", "kilobyte", "1/1000"),
    Conversion("data", "megabyte", "kilobyte", "1000"),
    Conversion("data", "kilobyte", "megabyte", "1/1000"),
    Conversion("data", "gigabyte", "megabyte", "1000"),
    Conversion("data", "megabyte", "gigabyte", "1/1000"),
    Conversion("data", "kibibyte", "byte", "1024"),
    Conversion("data", "byte", "kibibyte", "1/1024"),
    Conversion("data", "gibibyte", "mebibyte", "1024"),
    Conversion("data", "mebibyte", "gibibyte", "1/1024"),
)
