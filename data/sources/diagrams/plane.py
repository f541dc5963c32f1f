"""Plane geometry on complex numbers: x + iy, with y pointing down as in the image."""

from __future__ import annotations

import cmath
import math


def cross(a: complex, b: complex) -> float:
    return a.real * b.imag - a.imag * b.real


def dot(a: complex, b: complex) -> float:
    return a.real * b.real + a.imag * b.imag


def unit(a: complex) -> complex:
    return a / abs(a)


def turned(degrees: float) -> complex:
    """The unit vector at this angle."""
    return cmath.rect(1.0, math.radians(degrees))


def foot(p: complex, a: complex, b: complex) -> complex:
    """The point of line ab nearest to p."""
    along = b - a
    return a + along * (dot(p - a, along) / dot(along, along))


def meet(a: complex, b: complex, c: complex, d: complex) -> complex | None:
    """Where lines ab and cd cross; None when they are parallel."""
    turn = cross(b - a, d - c)
    if abs(turn) < 1e-12:
        return None
    return a + (b - a) * (cross(c - a, d - c) / turn)


def gap(p: complex, a: complex, b: complex) -> float:
    """Distance from p to the segment ab."""
    along = b - a
    t = dot(p - a, along) / dot(along, along)
    return abs(p - (a + along * min(1.0, max(0.0, t))))


def segments_cross(a: complex, b: complex, c: complex, d: complex) -> bool:
    """Whether the insides of segments ab and cd cross."""
    return cross(b - a, c - a) * cross(b - a, d - a) < 0 and cross(d - c, a - c) * cross(d - c, b - c) < 0


def angle(a: complex, b: complex, c: complex) -> float:
    """The angle abc in degrees, 0 to 180."""
    u, v = a - b, c - b
    return math.degrees(math.atan2(abs(cross(u, v)), dot(u, v)))


def circumcentre(a: complex, b: complex, c: complex) -> complex:
    u, v = b - a, c - a
    turn = 2 * cross(u, v)
    return a + 1j * (u * abs(v) ** 2 - v * abs(u) ** 2) / turn


def incentre(a: complex, b: complex, c: complex) -> complex:
    p, q, r = abs(b - c), abs(c - a), abs(a - b)
    return (a * p + b * q + c * r) / (p + q + r)
