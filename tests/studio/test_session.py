"""A rollout that is watched, without browser, clock or threads."""

import math

import numpy as np
import pytest

from visuomotor.errors import CheckpointError, ConfigError, VisuomotorError
from visuomotor.policy.checkpoint import load_policy
from visuomotor.simulation.rollout import rollout
from visuomotor.studio.policies import SHIPPED, Policies
from visuomotor.studio.session import Message, Session

SEED = 300011
QUICK = {"noise_scheduler_type": "DDIM", "num_inference_steps": 2}


@pytest.fixture
def session(policies: Policies) -> Session:
    return begun(policies)


def begun(policies: Policies, **settings: object) -> Session:
    session = Session(policies)
    tell(session, "settings", seed=SEED, **QUICK | settings)
    return session


def tell(session: Session, kind: str, **content: object) -> list[Message]:
    return list(session.handle({"type": kind, **content}))


def state(session: Session) -> np.ndarray:
    return session.episodes[0].table.state()


def steps(session: Session, count: int) -> list[Message]:
    return [message for _ in range(count) for message in session.advance()]


def test_it_begins_paused_with_the_first_policy(policies):
    session = Session(policies)
    told = tell(session, "settings", seed=SEED)
    assert [message["type"] for message in told] == ["settings", "begin", "frame"]
    assert told[0]["policy"] == SHIPPED[0]
    assert told[0]["policy_config"]["num_inference_steps"] == 8
    assert not session.running
    np.testing.assert_array_equal(state(session), session.episodes[0].states[0])


def test_run_and_pause_decide_whether_it_waits_for_the_clock(session):
    assert not session.waiting
    tell(session, "run")
    assert session.waiting
    tell(session, "pause")
    assert not session.waiting
    assert session.episodes[0].steps == 0


def test_a_step_is_one_tenth_of_a_second_and_pauses(session):
    tell(session, "run")
    told = tell(session, "step")
    assert [message["type"] for message in told] == ["plan", "frame"]
    assert [message["type"] for message in tell(session, "step")] == ["frame"]  # seven actions are left
    assert session.episodes[0].steps == 2
    assert told[-1]["episodes"][0]["executed"] == 1
    assert not session.running


def test_it_is_the_episode_that_an_evaluation_runs(policies):
    session = begun(policies)
    told = steps(session, 20)
    policy = load_policy(SHIPPED[0]).with_sampler("DDIM", 2)
    (episode,) = rollout(policy, [SEED], max_steps=20, policy_batch=1)
    np.testing.assert_array_equal(state(session), episode.states[-1])
    assert [m["step"] for m in told if m["type"] == "plan"] == episode.chunk_starts
    assert session.episodes[0].coverage == episode.coverages[-1]


def test_the_same_seed_is_the_same_rollout_whatever_else_is_drawn(policies):
    one, other = begun(policies), begun(policies, futures=4)
    steps(one, 10)
    steps(other, 10)
    np.testing.assert_array_equal(state(one), state(other))
    tell(one, "reset")
    assert not np.array_equal(state(one), state(other))
    steps(one, 10)
    np.testing.assert_array_equal(state(one), state(other))


def test_a_plan_shows_its_denoising_from_noise_to_actions(session):
    plan = steps(session, 1)[0]
    assert plan["steps"] == [50, 0]
    assert plan["noisy"].shape == (3, 16, 2)
    assert plan["clean"].shape == (2, 16, 2)
    np.testing.assert_array_equal(plan["noisy"][-1], plan["actions"])
    np.testing.assert_allclose(plan["clean"][-1], plan["actions"], atol=0.5)  # the last step ends on its estimate
    assert np.abs(np.diff(plan["noisy"][0], axis=0)).mean() > 100 > np.abs(np.diff(plan["actions"], axis=0)).mean()
    np.testing.assert_array_equal(session.episodes[0].action, plan["actions"][1])


def test_futures_are_other_plans(policies):
    plan = steps(begun(policies, futures=4), 1)[0]
    assert plan["futures"].shape == (3, 16, 2)
    everyone = np.concatenate([plan["actions"][None], plan["futures"]])
    assert len(np.unique(everyone, axis=0)) == 4


def test_a_hand_moves_the_simulator_while_it_is_paused_and_the_policy_sees_it(session):
    steps(session, 3)
    x, y = state(session)[:2]
    tell(session, "hand", do="take", thing="agent", x=x, y=y)
    (frame,) = tell(session, "hand", do="drag", x=60, y=70)
    assert frame["held"] == "agent"
    np.testing.assert_array_equal(frame["episodes"][0]["state"][:2], (60, 70))
    np.testing.assert_array_equal(state(session)[:2], (60, 70))
    np.testing.assert_array_equal(session.episodes[0].states[-1], state(session))
    tell(session, "hand", do="release")
    assert session.episodes[0].table.held is None


def test_a_solved_episode_waits_until_the_block_is_moved_away(session):
    episode = session.episodes[0]
    block = episode.table._environment.block
    block.angle = math.pi / 4
    block.position = (256, 256)
    tell(session, "run")
    steps(session, 1)
    assert episode.solved
    assert session.over
    assert not session.waiting
    before = episode.steps
    assert [message["type"] for message in session.advance()] == ["frame"]
    assert episode.steps == before
    tell(session, "hand", do="nudge", thing="block", x=60, y=0)
    assert session.waiting
    steps(session, 1)
    assert episode.steps == before + 1


def test_several_seeds_go_side_by_side(policies):
    session = begun(policies, episodes=4)
    told = steps(session, 9)
    assert [episode.seed for episode in session.episodes] == [SEED, SEED + 1, SEED + 2, SEED + 3]
    assert [len(m["episodes"]) for m in told if m["type"] == "frame"] == [4] * 9
    states = np.array([episode.table.state() for episode in session.episodes])
    assert len(np.unique(states, axis=0)) == 4
    with pytest.raises(ConfigError, match="look at one seed alone"):
        tell(session, "hand", do="nudge")


def test_speed_and_futures_change_in_the_middle_of_a_rollout_and_a_seed_begins_anew(session):
    steps(session, 2)
    assert [m["type"] for m in tell(session, "settings", speed=0.5, futures=8)] == ["settings", "frame"]
    assert session.period == 0.2
    assert session.episodes[0].steps == 2
    tell(session, "settings", seed=1)
    assert session.episodes[0].steps == 0
    assert session.settings.speed == 0.5


def test_an_image_policy_shows_both_frames_their_crop_and_key_points(policies):
    session = begun(policies, policy="pusht-image-small")
    plan = next(iter(session.advance()))
    view = plan["views"]["observation.image"]
    assert view["images"].shape == (2, 96, 96, 3)
    assert view["crop"] == (6, 6, 84, 84)
    assert view["key_points"].shape == (2, 32, 2)
    assert (view["key_points"] >= 6.5).all()
    assert (view["key_points"] <= 6.5 + 5 * 16).all()  # six cells, sixteen pixels apart


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"type": "dance"}, "type: expected one of settings"),
        ({}, "type: expected one of settings"),
        ({"type": "settings", "policy": "none"}, "policy: expected one of"),
        ({"type": "settings", "seed": -1}, "seed: expected 0 to"),
        ({"type": "settings", "seed": "x"}, "settings: seed"),
        ({"type": "settings", "sped": 1}, "did you mean speed?"),
        ({"type": "settings", "episodes": 26}, "episodes: expected 1 to 25"),
        ({"type": "settings", "n_action_steps": 99}, "n_action_steps"),
        ({"type": "settings", "noise_scheduler_type": "FlowMatchEuler"}, "noise_scheduler_type"),
        ({"type": "hand", "do": "drop"}, "hand: do"),
        ({"type": "hand", "do": "drag", "x": math.nan}, "hand: x: expected -10000 to 10000, got nan"),
        ({"type": "hand", "do": "drag", "x": 1e9}, "hand: x"),
    ],
)
def test_what_it_cannot_do_is_refused_and_changes_nothing(session, message, said):
    before, settings = state(session), session.settings
    with pytest.raises(VisuomotorError, match=said.replace("?", r"\?")):
        list(session.handle(message))
    np.testing.assert_array_equal(state(session), before)
    assert session.settings == settings


def test_nothing_runs_before_a_policy_is_chosen(policies):
    session = Session(policies)
    with pytest.raises(ConfigError, match="send settings first"):
        tell(session, "step")


def test_a_policy_that_is_nowhere_is_told_before_a_page_opens():
    with pytest.raises(CheckpointError, match="did you mean pusht-image-small"):
        Policies(["pusht-image-smal"])
