"""SWE-agent trajectories."""

from __future__ import annotations

import json

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from workloads.swe_agent.importer import IMPORTER
from workloads.tool_class import TYPICAL_WALL_S


def read(tmp_path, document, name="run.traj"):
    file = tmp_path / name
    file.write_text(json.dumps(document))
    return list(IMPORTER.read(file))


def trajectory(formats, steps, *, history_fields=None, step_fields=None, **more):
    history = formats.swe_agent_history(steps, **(history_fields or {}))
    rows = [
        formats.swe_agent_step(f"python t{i}.py", str(i) * 3400, **(step_fields or {}))
        for i in range(steps)
    ]
    return {"trajectory": rows, "history": history, "info": {}, **more}


def prompts(session):
    return [plan.prompt_tokens for plan in plan_turns(session)]


def test_old_generation_elides_observations_where_the_total_says_so(formats, tmp_path):
    """With tokens_sent as small as elided prompts are, prompts shrink after the sixth step."""
    whole = trajectory(formats, 9)
    # Whole prompts: 308 + k * 1,010 tokens (k = 0..8; answer 6, observation 1,004); elided ones stop growing at k = 5.
    whole["info"] = {"model_stats": {"tokens_sent": sum(308 + k * 1010 for k in range(9))}}
    (kept,) = read(tmp_path, whole)
    assert all(turn.drop_context_to is None for turn in kept.turns)
    elided = trajectory(formats, 9)
    elided["info"] = {"model_stats": {"tokens_sent": sum(308 + min(k, 5) * 1010 for k in range(9))}}
    (session,) = read(tmp_path, elided)
    found = prompts(session)
    assert found[8] < found[5] + 100
    assert [turn.drop_context_to is None for turn in session.turns] == [True] * 6 + [False] * 3
    # Reuse ends where the newly elided observation stood: step 6 keeps only the first answer.
    plans = plan_turns(session)
    assert plans[6].reused_tokens < 400 < plans[5].reused_tokens


def test_tokens_are_fitted_to_the_recorded_total(formats, tmp_path):
    """Text is scaled so that all prompts together have the tokens that were sent."""
    document = trajectory(formats, 3, step_fields={"execution_time": 0.5})
    document["info"] = {"model_stats": {"tokens_sent": 5000}}
    (session,) = read(tmp_path, document)
    assert abs(sum(prompts(session)) - 5000) < 20


def test_execution_time_is_recorded_in_new_generations_only(formats, tmp_path):
    """1.x: the recorded seconds; 0.x: the median of the class, as its provenance says."""
    (new,) = read(tmp_path, trajectory(formats, 1, step_fields={"execution_time": 7.25}))
    (old,) = read(tmp_path, trajectory(formats, 1))
    assert [t.wall_s for t in new.turns[0].tools] == [7.25]
    assert [t.wall_s for t in old.turns[0].tools] == [TYPICAL_WALL_S["script"]]
    assert old.turns[0].tools[0].tool_class == "script"


def test_configured_elision_of_new_generations(formats, tmp_path):
    """replay_config (an object, or JSON text) says how many observations stay whole."""
    config = {
        "agent": {
            "model": {"name": "gpt"},
            "history_processors": [{"type": "last_n_observations", "n": 2}],
        }
    }
    fields = {"message_type": "x"}
    for written in (config, json.dumps(config)):
        document = trajectory(formats, 5, history_fields=fields, replay_config=written)
        (session,) = read(tmp_path, document)
        assert session.model == "gpt"
        assert [turn.drop_context_to is None for turn in session.turns] == [
            True,
            True,
            True,
            False,
            False,
        ]
    (session,) = read(tmp_path, trajectory(formats, 5, history_fields=fields, replay_config={}))
    assert all(turn.drop_context_to is None for turn in session.turns)


def test_messages_written_after_the_step_lose_its_own_answer(formats, tmp_path):
    """Early 1.x steps end with their own answer and observation: those are not in the prompt."""
    fields = {"message_type": "x"}
    history = formats.swe_agent_history(2, **fields)
    exact = trajectory(formats, 2, history_fields=fields)
    late = trajectory(formats, 2, history_fields=fields)
    for index in range(2):
        exact["trajectory"][index]["query"] = history[: 2 + 2 * index]
        late["trajectory"][index]["messages"] = history[: 4 + 2 * index]
    assert (
        prompts(*read(tmp_path, exact)) == prompts(*read(tmp_path, late)) == [308, 308 + 6 + 1004]
    )


def test_function_calls_and_demonstrations(formats, tmp_path):
    """A history alone is a session; tool calls carry their names, demonstrations are shared text."""
    call = {
        "function": {"name": "bash", "arguments": '{"command": "pytest -q"}'},
        "id": "c",
        "type": "function",
    }
    history = [
        {"role": "system", "content": "s" * 340},
        {"role": "user", "content": "d" * 340, "is_demo": True},
        {"role": "user", "content": "t" * 68},
        {"role": "assistant", "content": "run", "tool_calls": [call]},
        {"role": "tool", "content": "x" * 34, "tool_call_ids": ["c"]},
        {"role": "assistant", "content": "done"},
    ]
    (session,) = read(tmp_path, {"history": history})
    # 104 + 104 of the opening, 24 of the task; then 3 + 30 characters of answer and call.
    assert prompts(session)[0] == 232
    assert session.shared_prefix.tokens == 208
    (tool,) = session.turns[0].tools
    assert (tool.name, tool.tool_class, tool.result_tokens) == ("bash", "test", 10)


def test_attempts_are_sessions(formats, tmp_path):
    """A file with several attempts gives one session for each."""
    attempts = [trajectory(formats, 1), trajectory(formats, 2)]
    sessions = read(tmp_path, {"attempts": attempts})
    assert [(s.session_id, len(s.turns)) for s in sessions] == [("run/0", 1), ("run/1", 2)]


def test_a_trajectory_without_answers_is_an_error(formats, tmp_path):
    """File and field are named."""
    with pytest.raises(TraceError, match=r"run\.traj.*trajectory: holds no answer"):
        read(tmp_path, {"trajectory": [], "history": [{"role": "system", "content": "s"}]})


def test_real_total_is_met(real_data):
    """The pydicom run sent 122,612 tokens in 12 calls, with elided observations."""
    file = next((real_data / "fixtures" / "swe_agent").glob("*pydicom*"))
    (session,) = IMPORTER.read(file)
    assert len(session.turns) == 12
    assert abs(sum(prompts(session)) - 122_612) < 200
    assert any(turn.drop_context_to for turn in session.turns)
