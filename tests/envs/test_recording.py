"""Episodes as arrays, and simulator states in 32-bit halves."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import envs
from envs.recording import decode_state, encode_state, record


@given(arrays(np.float64, array_shapes(min_dims=1, max_dims=3), elements=st.floats(width=64)))
def test_encoding_a_state_loses_nothing(state: np.ndarray) -> None:
    halves = encode_state(state)
    assert halves.dtype == np.int32
    assert halves.shape == (*state.shape[:-1], 2 * state.shape[-1])
    assert decode_state(halves).tobytes() == state.tobytes()
    # Readers that widen integers give the same.
    assert decode_state(halves.astype(np.int64)).tobytes() == state.tobytes()


def test_an_episode_is_what_happened() -> None:
    env: Any = envs.make("reach_around", image_size=16, cameras=("front",)).unwrapped
    episode = record(env, seed=11)
    assert len(episode) == len(episode.state) == len(episode.images["front"])
    assert episode.images["front"].dtype == np.uint8
    assert episode.state.dtype == episode.action.dtype == np.float32
    assert episode.success[-1]
    assert not episode.success[0]
    assert episode.mode in ("left", "right")

    # Replaying the actions gives the frames; restoring a frame's state gives that frame.
    observation, _ = env.reset(seed=11)
    for t, action in enumerate(episode.action):
        np.testing.assert_array_equal(observation["agent_pos"], episode.state[t])
        np.testing.assert_array_equal(observation["pixels"]["front"], episode.images["front"][t])
        observation, *_, info = env.step(action)
        assert info["is_success"] == episode.success[t]
    assert episode.simulator_state is not None
    env.set_state(episode.simulator_state[20])
    np.testing.assert_array_equal(env.agent_pos, episode.state[20])
    env.close()
