"""The hand on the table: what it moves, and that nothing changes while it touches nothing."""

import math

import numpy as np
import pytest

from visuomotor.data.pusht_geometry import block_keypoints
from visuomotor.simulation.pusht import PushT
from visuomotor.studio.table import MARGIN, RADIUS, Table

SEED = 7
STILL = np.array([256.0, 470.0], np.float32)


@pytest.fixture
def table() -> Table:
    table = Table()
    table.reset(SEED)
    return table


def test_without_a_hand_it_is_push_t(table):
    plain = PushT()
    plain.reset(SEED)
    actions = np.random.default_rng(0).uniform(120, 400, (20, 2)).astype(np.float32)
    for action in actions:
        mine, theirs = table.step(action), plain.step(action)
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[1] == theirs[1]


def test_the_agent_is_where_the_hand_is_whatever_the_policy_wants(table):
    table.take("agent", 100, 120)
    np.testing.assert_array_equal(table.state()[:2], (100, 120))
    table.drag(80, 90)
    state, _ = table.step(STILL)
    np.testing.assert_array_equal(state[:2], (80, 90))
    table.release()
    after, _ = table.step(STILL)
    assert np.hypot(*(after[:2] - STILL)) < np.hypot(*(state[:2] - STILL)) - 50


def test_the_block_follows_the_point_where_it_is_held(table):
    x, y, angle = table.state()[2:]
    corner = block_keypoints(np.array([[x, y, angle]])).reshape(8, 2)[7]  # the foot of the T
    table.take("block", *map(float, corner))
    np.testing.assert_array_equal(table.state()[2:], (x, y, angle))  # taking it moves nothing
    for share in np.linspace(0, 1, 10):
        table.drag(*map(float, corner + share * (np.array([256, 256]) - corner)))
    state, _ = table.step(STILL)
    held = block_keypoints(state[None, 2:]).reshape(8, 2)[7]
    np.testing.assert_allclose(held, (256, 256), atol=1e-3)
    assert abs(state[4] - angle) > 0.1  # it has trailed behind


def test_held_at_its_centre_of_mass_the_block_does_not_turn(table):
    before = table.state()
    centre = table._environment.block.local_to_world(table._environment.block.center_of_gravity)
    table.take("block", *centre)
    table.drag(centre[0] + 20, centre[1] - 10)
    np.testing.assert_allclose(table.state()[2:] - before[2:], (20, -10, 0), atol=1e-9)


@pytest.mark.parametrize("held", [True, False])
def test_turning(table, held):
    before = table.state()
    if held:
        table.take("block", *before[2:4])  # its own position: it turns about that
    table.turn(math.pi / 2)
    after = table.state()
    assert after[4] == pytest.approx((before[4] + math.pi / 2) % (2 * math.pi))
    moved = np.hypot(*(after[2:4] - before[2:4]))
    assert moved == pytest.approx(0, abs=1e-9) if held else moved > 10


@pytest.mark.parametrize("place", [(-900.0, -900.0), (900.0, 900.0), (-900.0, 900.0)])
@pytest.mark.parametrize("thing", ["block", "agent"])
def test_nothing_leaves_the_table(table, thing, place):
    state = table.state()
    table.take(thing, *(state[2:4] if thing == "block" else state[:2]))
    table.drag(*place)
    state = table.state()
    agent = np.array([state[:2] - RADIUS, state[:2] + RADIUS])
    reach = block_keypoints(state[None, 2:]).reshape(8, 2) if thing == "block" else agent
    assert reach.min() >= MARGIN - 1e-3
    assert reach.max() <= 512 - MARGIN + 1e-3


def test_a_nudge_and_the_coverage_of_what_is_there_now(table):
    before = table.state()
    table.nudge("block", 8, 0)
    np.testing.assert_allclose(table.state() - before, (0, 0, 8, 0, 0), atol=1e-9)
    environment = table._environment
    environment.block.angle = math.pi / 4
    environment.block.position = (256, 256)
    assert table.coverage() == pytest.approx(1, abs=1e-9)


def test_a_reset_lets_go(table):
    table.take("agent", 100, 100)
    np.testing.assert_array_equal(table.reset(SEED), PushT().reset(SEED))
    assert table.held is None
