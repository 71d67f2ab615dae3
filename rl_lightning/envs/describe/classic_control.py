"""Describers of Gymnasium's classic control: quantities by name, unit and direction.

Numbers are rounded so coarsely that texts repeat, and so finely that simple controllers that read
them still balance and swing up. Where speed must be built up from rest, it is rounded away from
zero: rounded to zero, slow motion would lose its direction, and a greedy policy would never start.
"""

import math
from collections.abc import Sequence

import gymnasium as gym

VALLEY = -math.pi / 6  # position where the hill of MountainCar, sin(3x), is lowest


def nearest(value: float, step: int, limit: int) -> int:
    """The multiple of `step` nearest to `value`, halves away from zero, at most `limit` in size.

    Odd in `value`, so that mirrored states give mirrored sentences; so is `outwards`.

    Raises:
        ValueError: If `value` is not a number.
    """
    size = int(min(abs(value), limit) / step + 0.5) * step
    return size if value > 0 else -size


def outwards(value: float, step: int, limit: int) -> int:
    """The next multiple of `step` away from zero, at most `limit` in size; 0 only for 0.

    Raises:
        ValueError: If `value` is not a number.
    """
    size = math.ceil(min(abs(value), limit) / step) * step
    return size if value > 0 else -size


def describe_cart_pole(obs: Sequence[float], env: gym.Env) -> str:
    """CartPole, to 40 cm, 40 cm/s, 1 degree and 20 degrees/s.

    Args:
        obs: Position [m], velocity [m/s], angle [rad], angular velocity [rad/s]; right is positive.
        env: Not used.
    """
    position, velocity, angle, spin = map(float, obs)
    place = nearest(100 * position, 40, 240)
    speed = nearest(100 * velocity, 40, 320)
    lean = nearest(math.degrees(angle), 1, 24)
    turn = nearest(math.degrees(spin), 20, 200)
    return (
        f"The cart is {_side(place, 'centimeters', ' of the center') or 'at the center'}, "
        f"{_move('moving', speed, 'centimeters per second') or 'standing still'}. "
        f"The pole {_lean(lean) or 'is upright'}, "
        f"{_move('falling', turn, 'degrees per second') or 'not turning'}."
    )


def describe_mountain_car(obs: Sequence[float], env: gym.Env) -> str:
    """MountainCar, discrete and continuous, to 5 cm and 10 mm per step.

    Args:
        obs: Position [m] and velocity [m per step]; right is positive.
        env: Not used.
    """
    position, velocity = map(float, obs)
    place = nearest(100 * (position - VALLEY), 5, 120)
    speed = outwards(1000 * velocity, 10, 70)
    where = _side(place, "centimeters", " of the valley floor") or "on the valley floor"
    return (
        f"The car is {where}, "
        f"{_move('rolling', speed, 'millimeters per step') or 'standing still'}."
    )


def describe_acrobot(obs: Sequence[float], env: gym.Env) -> str:
    """Acrobot, to 20 degrees and, for upper and lower link, 60 and 120 degrees/s.

    Args:
        obs: Cosine and sine of the angle of the upper link, from hanging down, and of the lower,
            from the upper; then both angular velocities [rad/s]; counterclockwise is positive.
        env: Not used.
    """
    cos1, sin1, cos2, sin2, spin1, spin2 = map(float, obs)
    upper = nearest(math.degrees(math.atan2(sin1, cos1)), 20, 180)
    lower = nearest(math.degrees(math.atan2(sin2, cos2)), 20, 180)
    points = {0: "straight down", 180: "straight up"}.get(abs(upper))
    bends = {0: "is in line with it", 180: "is folded back on it"}.get(abs(lower))
    return (
        f"The upper link points {points or _side(upper, 'degrees', ' of straight down')}, "
        f"{_turn(outwards(math.degrees(spin1), 60, 720))}. "
        f"The lower link {bends or f'bends {abs(lower)} degrees {_clock(lower)} from it'}, "
        f"{_turn(outwards(math.degrees(spin2), 120, 1680))}."
    )


def describe_pendulum(obs: Sequence[float], env: gym.Env) -> str:
    """Pendulum, to 10 degrees and 40 degrees/s.

    Args:
        obs: Cosine and sine of the angle from upright, angular velocity [rad/s]; counterclockwise
            is positive.
        env: Not used.
    """
    cos, sin, spin = map(float, obs)
    angle = nearest(math.degrees(math.atan2(sin, cos)), 10, 180)
    points = {0: "straight up", 180: "straight down"}.get(abs(angle))
    return (
        f"The pole points {points or _side(-angle, 'degrees', ' of straight up')}, "
        f"{_turn(nearest(math.degrees(spin), 40, 480))}."
    )


def _side(amount: int, unit: str, origin: str) -> str:
    return f"{abs(amount)} {unit} {'right' if amount > 0 else 'left'}{origin}" if amount else ""


def _move(verb: str, speed: int, unit: str) -> str:
    return f"{verb} {'right' if speed > 0 else 'left'} at {abs(speed)} {unit}" if speed else ""


def _lean(angle: int) -> str:
    side = "right" if angle > 0 else "left"
    return f"leans {abs(angle)} degree{'s' * (abs(angle) > 1)} {side}" if angle else ""


def _clock(amount: int) -> str:
    return "counterclockwise" if amount > 0 else "clockwise"


def _turn(speed: int) -> str:
    return f"turning {_clock(speed)} at {abs(speed)} degrees per second" if speed else "not turning"
