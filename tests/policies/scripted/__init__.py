"""A teleoperator whose hand is a formula, for LeRobot's commands: ``--teleop.type=scripted``."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from lerobot.teleoperators import Teleoperator, TeleoperatorConfig


@TeleoperatorConfig.register_subclass("scripted")
@dataclass(kw_only=True)
class ScriptedConfig(TeleoperatorConfig):
    """From ``start`` by ``reach`` and back, once in ``period_s``; rad.

    Attributes:
        names: of the joints.
        start, reach: for each of them.
    """

    names: list[str] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    reach: list[float] = field(default_factory=list)
    period_s: float = 3.0


class Scripted(Teleoperator):
    config_class = ScriptedConfig
    name = "scripted"

    def __init__(self, config: ScriptedConfig) -> None:
        super().__init__(config)
        self.config = config
        self._begun: float | None = None
        self._connected = False

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(self.config.names, float)

    @property
    def feedback_features(self) -> dict[str, type]:
        return {}

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_action(self) -> dict[str, float]:
        now = time.monotonic()
        self._begun = self._begun or now
        share = (1 - math.cos(2 * math.pi * (now - self._begun) / self.config.period_s)) / 2
        c = self.config
        return {n: a + share * b for n, a, b in zip(c.names, c.start, c.reach, strict=True)}

    def send_feedback(self, feedback: dict[str, Any]) -> None: ...

    def disconnect(self) -> None:
        self._connected = False
