"""ReachAround: bring the fingertips to a marker behind a post, past it on either side.

Two ways are right and their average is wrong: a policy that regresses to the mean of the
demonstrations runs into the post.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .arm import WORLD
from .expert import Expert, Plan
from .reach import Reach


class ReachAround(Reach):
    """`Reach` with a post on the way; touching it spoils the episode.

    The straight way hits the post from every start to every target, and it is too high to pass
    over at the height of the task. ``info["mode"]`` says on which side the tip passed the post, as
    the arm sees it: "left" (y above the post's) or "right"; "" until it has. ``info["collision"]``
    says whether the arm has touched the post, after which there is no success.
    """

    task_description = "Move the gripper around the blue post to the red marker."
    task_variables: ClassVar[tuple[str, ...]] = ("held", "side", "touched")
    info_keys: ClassVar[tuple[str, ...]] = (*Reach.info_keys, "collision")

    START = np.array([[0.335, 0.355], [-0.012, 0.012], [0.035, 0.055]])
    REGION = np.array([[0.55, 0.67], [-0.10, 0.10]])
    POST = np.array([[0.455, 0.465], [-0.01, 0.01]])
    """Where the post's centre can be, in metres."""
    POST_RADIUS = 0.025
    POST_HEIGHT = 0.16

    side: float
    touched: float

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._post = self.model.body("post").mocapid[0]
        self._post_geom = self.model.geom("post").id

    def scene(self) -> str:
        return f"""{super().scene()}
            <body name="post" mocap="true">
              <geom name="post" type="cylinder" pos="0 0 {self.POST_HEIGHT / 2}"
                    size="{self.POST_RADIUS} {self.POST_HEIGHT / 2}"
                    rgba="0.05 0.20 0.95 1" {WORLD}/>
            </body>"""

    def reset_task(self) -> np.ndarray:
        joints = super().reset_task()
        self.data.mocap_pos[self._post, :2] = self.np_random.uniform(*self.POST.T)
        return joints

    @property
    def post(self) -> np.ndarray:
        """Centre of the post's foot, ``[3]`` in metres."""
        return self.data.mocap_pos[self._post]

    def observe_contacts(self) -> None:
        if self._post_geom in self.data.contact.geom:
            self.touched = 1.0

    def update_task(self, tip_before: np.ndarray) -> None:
        super().update_task(tip_before)
        if tip_before[0] < self.post[0] <= self.tip[0]:
            self.side = 1.0 if self.tip[1] > self.post[1] else -1.0

    def task_info(self) -> dict[str, Any]:
        info = super().task_info()
        info["is_success"] = info["is_success"] and not self.touched
        info["mode"] = {1.0: "left", -1.0: "right"}.get(self.side, "")
        info["collision"] = bool(self.touched)
        return info

    def make_expert(self, seed: int | None = None) -> Expert:
        return ReachAroundExpert(self, seed)


class ReachAroundExpert(Expert):
    """Past the post on a side drawn by coin flip, at a clearance and speed drawn too."""

    env: ReachAround

    def plan(self) -> Plan:
        start, post, target = self.env.tip.copy(), self.env.post, self.env.target
        side = self.rng.choice([-1.0, 1.0])
        clearance = self.rng.uniform(0.105, 0.135)
        via = np.array([post[0] + 0.01, post[1] + side * clearance, (start[2] + target[2]) / 2])
        lengths = np.linalg.norm([via - start, target - via], axis=1)
        duration = self.rng.uniform(2.3, 2.8)
        times = np.array([0.0, lengths[0] / lengths.sum(), 1.0]) * duration
        return Plan(np.array([start, via, target]), times, openings=np.zeros(3))
