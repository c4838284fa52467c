"""Push-T with a hand in it: the T or the agent can be taken, dragged, turned and let go at any moment."""

import math
from typing import Any, Literal

import numpy as np

from visuomotor.data.pusht_geometry import SIZE, block_keypoints
from visuomotor.simulation.pusht import PushT

Thing = Literal["block", "agent"]
MARGIN = 8.0
"""Pixels that what is dragged keeps from the edge of the table: its walls are 5 from it and 2 thick."""
RADIUS = 15.0
"""Of the agent."""
RIGID = 12.0
"""Taken nearer than this to its centre of mass, the T follows without turning."""


class Table(PushT):
    """One episode at a time, as `PushT` runs it while nobody touches anything."""

    def __init__(self) -> None:
        super().__init__()
        self._held: Thing | None = None
        self._hand = (0.0, 0.0)
        self._grip = (0.0, 0.0)  # where the hand has hold of the block, in the block's own frame

    @property
    def held(self) -> Thing | None:
        """What the hand has."""
        return self._held

    def reset(self, seed: int) -> np.ndarray:
        """As `PushT`; the hand lets go."""
        self._held = None
        return super().reset(seed)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        """As `PushT`; what is held stays with the hand, whatever the policy wants."""
        if self._held is None:
            return super().step(action)
        super().step(np.array(self._hand) if self._held == "agent" else action)
        self._follow()
        return self.state(), self.coverage()

    def state(self) -> np.ndarray:
        """The present state (5,), float64."""
        return self._environment.get_obs()

    def coverage(self) -> float:
        """The share of the goal that the block covers now."""
        return float(self._coverage())

    def take(self, thing: Thing, x: float, y: float) -> None:
        """Takes hold of the agent, or of the block at a point of the table in pixels."""
        self._held, self._hand = thing, (x, y)
        self._grip = self._environment.block.world_to_local((x, y))
        if thing == "agent":
            self._follow()

    def drag(self, x: float, y: float) -> None:
        """Moves the hand. The block trails behind the point where it is held, as on a table with friction."""
        if self._held is None:
            return
        if self._held == "block":
            self._turn_behind(x, y)
        self._hand = (x, y)
        self._follow()

    def turn(self, angle: float) -> None:
        """Turns the block by some radians, about the hand if that has it, else about its centre of mass."""
        block = self._environment.block
        block.angle += angle
        if self._held == "block":
            self._follow()
        else:
            self._place(block, block.position, block.angle)

    def nudge(self, thing: Thing, dx: float, dy: float) -> None:
        """Moves the block or the agent by some pixels."""
        body = self._environment.block if thing == "block" else self._environment.agent
        x, y = body.position
        self._place(body, (x + dx, y + dy), body.angle)

    def release(self) -> None:
        """Lets go."""
        self._held = None

    def _turn_behind(self, x: float, y: float) -> None:
        """The centre of mass keeps its distance to the hand, and moves no further than that needs (a tractrix)."""
        block = self._environment.block
        centre = block.local_to_world(block.center_of_gravity)
        before, after = centre - self._hand, centre - (x, y)
        if before.length < RIGID or after.length < RIGID:
            return
        block.angle += (after.angle - before.angle + math.pi) % (2 * math.pi) - math.pi

    def _follow(self) -> None:
        """Puts what is held where the hand is."""
        if self._held == "agent":
            self._place(self._environment.agent, self._hand, 0.0)
            return
        block = self._environment.block
        block.position += self._hand - block.local_to_world(self._grip)
        self._place(block, block.position, block.angle)

    def _place(self, body: Any, position: tuple[float, float], angle: float) -> None:
        """Sets a body down at rest, wholly on the table."""
        x, y = position
        if body is self._environment.agent:
            reach = np.array([[-RADIUS, -RADIUS], [RADIUS, RADIUS]])
        else:
            reach = block_keypoints(np.array([[0, 0, angle]])).reshape(8, 2)
        (left, top), (right, bottom) = reach.min(axis=0), reach.max(axis=0)
        body.angle = angle  # first: it turns about the centre of mass, and would move the position
        body.position = (
            float(np.clip(x, MARGIN - left, SIZE - MARGIN - right)),
            float(np.clip(y, MARGIN - top, SIZE - MARGIN - bottom)),
        )
        body.velocity, body.angular_velocity = (0, 0), 0
        self._environment.space.reindex_shapes_for_body(body)
