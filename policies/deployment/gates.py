"""When the arm must not go on. Each gate is a reason in words, or nothing.

They are looked at in every control period, before anything is sent. Ages are of arrival on this
machine's monotonic clock: a bridge that still accepts sockets while its ROS side is dead shows as
age, never as a lost connection. Skew between joints and cameras is of their own stamps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arm import Measured, Reading

PRESSED = "the emergency stop is pressed"


@dataclass
class GateConfig:
    """How old and how far apart measurements may be.

    Attributes:
        joints_age_s, camera_age_s: since arrival.
        skew_s: between the stamps of joints and any camera.
        frozen_rad: so far may the joints move while a camera sends the very same picture. (A
            picture that stays the same while nothing moves is usual in simulation.)
        tracking_rad: distance between what was commanded and what is measured.

    Raises:
        ValueError: a limit that is not above 0.
    """

    joints_age_s: float = 0.15
    camera_age_s: float = 0.3
    skew_s: float = 0.2
    frozen_rad: float = 0.15
    tracking_rad: float = 0.35

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:  # nor NaN
                raise ValueError(f"{name} must be above 0, found {value}")


class Gates:
    """The gates of one arm.

    Args:
        config: the limits.
        axes, cameras: of the arm.
        low, high: ``[J]``, where joints can be; a measured joint may lie beyond by a little, since
            joints give.
    """

    SLACK = 0.1
    """Radians (a gripper: metres) that a joint may be measured beyond its limits."""

    def __init__(
        self,
        config: GateConfig,
        axes: tuple[str, ...],
        cameras: tuple[str, ...],
        low: np.ndarray,
        high: np.ndarray,
    ) -> None:
        self.config, self.axes, self.cameras, self.low, self.high = config, axes, cameras, low, high
        self._pictures: dict[str, tuple[Measured, np.ndarray]] = {}

    def check(self, reading: Reading, now: float, generation: int) -> str:
        """Why the arm must not go on, or "".

        Args:
            now: monotonic.
            generation: of the arm's link; 0 while there is none.
        """
        if not generation:
            return "the link to the robot is lost"
        if reading.stopped:
            return PRESSED
        if reading.problem:
            return reading.problem
        return self._joints(reading.joints, now) or self._images(reading, now)

    def tracking(self, reading: Reading, commanded: np.ndarray) -> str:
        """Why what is measured is too far from what was commanded, or ""."""
        assert reading.joints is not None
        away = np.abs(reading.joints.value - commanded)
        if away.max() <= self.config.tracking_rad:
            return ""
        worst = int(away.argmax())
        return (
            f"{self.axes[worst]} is {away[worst]:.3f} rad from where it was commanded to be "
            f"(at most {self.config.tracking_rad:g})"
        )

    def _joints(self, joints: Measured | None, now: float) -> str:
        if joints is None:
            return "no joint state has arrived yet"
        if joints.value.shape != self.low.shape:
            return f"joints are measured as {joints.value.shape}, expected {self.low.shape}"
        if not (age := now - joints.arrival) <= self.config.joints_age_s:
            return f"joint states are stale: {age:.3f} s (at most {self.config.joints_age_s:g})"
        if not np.isfinite(joints.value).all():
            bad = [a for a, v in zip(self.axes, joints.value, strict=True) if not np.isfinite(v)]
            return f"joints {bad} are measured as no number"
        out = (joints.value < self.low - self.SLACK) | (joints.value > self.high + self.SLACK)
        if out.any():
            bad = [f"{self.axes[i]}={joints.value[i]:.3f}" for i in np.flatnonzero(out)]
            return f"joints are measured beyond their limits: {', '.join(bad)}"
        return ""

    def _images(self, reading: Reading, now: float) -> str:
        c = self.config
        for camera in self.cameras:
            image = reading.images.get(camera)
            if image is None:
                return f"camera {camera} has sent no picture yet"
            if not (age := now - image.arrival) <= c.camera_age_s:
                return f"camera {camera} is stale: {age:.3f} s (at most {c.camera_age_s:g})"
            assert reading.joints is not None
            if image.stamp is not None and reading.joints.stamp is not None:
                skew = abs(image.stamp - reading.joints.stamp)
                if not skew <= c.skew_s:
                    return (
                        f"camera {camera} and joints are {skew:.3f} s apart by their own stamps "
                        f"(at most {c.skew_s:g})"
                    )
            if why := self._frozen(camera, image, reading.joints.value):
                return why
        return ""

    def _frozen(self, camera: str, image: Measured, joints: np.ndarray) -> str:
        last, where = self._pictures.get(camera, (image, joints))
        if last.sequence != image.sequence and not np.array_equal(last.value, image.value):
            where = joints
        self._pictures[camera] = image, where
        moved = float(np.abs(joints - where).max())
        if moved <= self.config.frozen_rad:
            return ""
        return f"camera {camera} shows the same picture although the joints moved {moved:.2f} rad"
