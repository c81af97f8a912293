"""ZeRO over two real ranks against plain torch in one process, and the promises of the engine on every stage.

Tolerance: float32 sums in another order; after 20 steps parameters and moments of order 1 agree to 2e-6.
"""

import math
import os
import sys

import pytest
import torch
from ranks import Ranks
from torch import nn
from toy import CAPACITY, Toy, groups, lanes_of, largest_difference, loss_at, make, same, train

from fiag_dist.dist import engine as engine_module
from fiag_dist.dist import process
from fiag_dist.dist.engine import LocalEngine, StepReport, ZeroEngine
from fiag_dist.dist.process import Process
from fiag_dist.dist.state import RowEdit, State, flatten, unflatten
from fiag_dist.errors import CheckpointError, ConfigError

TOLERANCE = 2e-6
STAGES = (0, 1, 2)


def trained(me: Process, stage: int, grad_clip: float) -> tuple[State, list[StepReport]]:
    engine = make(stage, grad_clip)
    reports = train(engine, me, 0, 20)
    return engine.gather(), reports


@pytest.mark.parametrize("grad_clip", [0.0, 0.1])
@pytest.mark.parametrize("stage", STAGES)
def test_equals_one_process_and_ranks_agree_bit_for_bit(two: Ranks, stage: int, grad_clip: float) -> None:
    (state, reports), (other, other_reports) = two.run(trained, stage, grad_clip)
    assert same(state, other)
    assert reports == other_reports
    reference = make(None, grad_clip)
    expected = train(reference, None, 0, 20)
    assert largest_difference(state, reference.gather()) < TOLERANCE
    assert all(
        a.finite and a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5) for a, b in zip(reports, expected, strict=True)
    )
    assert (largest_difference(reference.gather(), make(None).gather())) > 0.05, (
        "nothing was learnt: the test proves nothing"
    )


def compilers(me: Process, stage: int) -> tuple[bool, str | None]:
    make(stage)
    return "torch._inductor.compile_fx" in sys.modules, os.environ.get("TORCHDYNAMO_DISABLE")


@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_loads_no_compiler_and_leaves_its_switch_alone(one: Ranks, stage: int) -> None:
    assert one.run(compilers, stage) == [(False, None)]


def module_after(me: Process, stage: int) -> dict[str, torch.Tensor]:
    engine = make(stage)
    train(engine, me, 0, 3)
    state = engine.gather()
    assert all(
        torch.equal(state[name]["param"], param) for name, param in engine.module.named_parameters() if name in state
    )
    return {name: param.detach().clone() for name, param in engine.module.named_parameters()}


@pytest.mark.parametrize("stage", STAGES)
def test_modules_hold_the_same_parameters_on_every_rank(two: Ranks, stage: int) -> None:
    first, second = two.run(module_after, stage)
    assert all(torch.equal(first[name], second[name]) for name in first)


def stopped_and_not(me: Process, stage: int, stop: int) -> tuple[State, State]:
    whole = make(stage)
    train(whole, me, 0, stop)
    middle = whole.gather()
    train(whole, me, stop, 8)
    resumed = make(stage)
    resumed.scatter(unflatten(*flatten(middle)))
    assert same(resumed.gather(), middle)
    train(resumed, me, stop, 8)
    return whole.gather(), resumed.gather()


@pytest.mark.parametrize("stop", [0, 5])
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_bit_identical_to_one_never_stopped(two: Ranks, stage: int, stop: int) -> None:
    for whole, resumed in two.run(stopped_and_not, stage, stop):
        assert same(whole, resumed)
        assert whole["field"]["step"] == 8


def stopped_and_not_alone(grad_clip: float = 0.0) -> tuple[State, State]:
    whole = make(None)
    train(whole, None, 0, 5)
    resumed = make(None)
    resumed.scatter(whole.gather())
    train(whole, None, 5, 8)
    train(resumed, None, 5, 8)
    return whole.gather(), resumed.gather()


def test_a_resumed_run_is_bit_identical_in_one_process() -> None:
    assert same(*stopped_and_not_alone())


def go_on(me: Process, state: State | None, begin: int, end: int, stage: int = 1) -> State:
    engine = make(stage)
    if state is not None:
        engine.scatter(state)
    train(engine, me, begin, end)
    return engine.gather()


def test_another_number_of_ranks_goes_on_alike(one: Ranks, two: Ranks) -> None:
    state = two.run(go_on, None, 0, 4)[0]
    state = one.run(go_on, state, 4, 8)[0]
    state = two.run(go_on, state, 8, 12, 2)[0]
    reference = make(None)
    train(reference, None, 0, 12)
    assert largest_difference(state, reference.gather()) < TOLERANCE


def grown_and_pruned(me: Process | None, stage: int | None) -> tuple[torch.Tensor, State]:
    """20 live rows; 6 children after step 5; every third row pruned after step 10; slots reused by 4 children after 15."""
    engine = make(stage)
    live = 20
    for step in range(20):
        if step in (5, 15):
            parents = torch.arange(6 if step == 5 else 4) * 2
            source, fresh = torch.cat([torch.arange(live), parents]), torch.arange(live + len(parents)) >= live
            shrink = torch.where(fresh, 0.9, 1.0)
            live = regrow(engine, source, fresh, shrink)
        if step == 10:
            source = torch.arange(live)[torch.arange(live) % 3 != 0]
            live = regrow(engine, source, torch.zeros(len(source), dtype=torch.bool), torch.ones(len(source)))
        engine.backward_and_step(loss_at(engine, me, step, live))
    state = engine.gather()
    return state["field"]["param"][:live], state


def regrow(engine: ZeroEngine | LocalEngine, source: torch.Tensor, fresh: torch.Tensor, scale: torch.Tensor) -> int:
    values = torch.zeros(CAPACITY, 5)
    values[: len(source)] = engine.module.field.detach()[source] * scale[:, None]
    rows, new = torch.zeros(CAPACITY, dtype=torch.int64), torch.ones(CAPACITY, dtype=torch.bool)
    rows[: len(source)], new[: len(source)] = source, fresh
    engine.remap({"field": RowEdit(values, new, rows)})
    return len(source)


def grown_and_pruned_by_hand() -> tuple[torch.Tensor, torch.Tensor]:
    """The same with tensors that really grow and shrink under plain AdamW -> field, its first moment."""
    toy = Toy()
    toy.field = nn.Parameter(toy.field.detach()[:20].clone())
    settings = {g["name"]: {k: v for k, v in g.items() if k not in ("name", "params")} for g in groups(toy)}
    nets = torch.optim.AdamW([toy.first, toy.last, toy.extra], **settings["nets"])
    field = torch.optim.AdamW([toy.field], **settings["field"])

    def replace(source: torch.Tensor, fresh: torch.Tensor, scale: torch.Tensor) -> None:
        nonlocal field
        moments = field.state[toy.field]
        toy.field = nn.Parameter(toy.field.detach()[source] * scale[:, None])
        field = torch.optim.AdamW([toy.field], **settings["field"])
        kept = {k: torch.where(fresh[:, None], 0.0, moments[k][source]) for k in ("exp_avg", "exp_avg_sq")}
        field.state[toy.field] = {"step": moments["step"], **kept}

    class Bare:
        def forward(self, *args, **kwargs):
            return toy(*args, **kwargs)

    for step in range(20):
        live = len(toy.field)
        if step in (5, 15):
            parents = torch.arange(6 if step == 5 else 4) * 2
            source, fresh = torch.cat([torch.arange(live), parents]), torch.arange(live + len(parents)) >= live
            replace(source, fresh, torch.where(fresh, 0.9, 1.0))
        if step == 10:
            source = torch.arange(live)[torch.arange(live) % 3 != 0]
            replace(source, torch.zeros(len(source), dtype=torch.bool), torch.ones(len(source)))
        loss_at(Bare(), None, step, len(toy.field)).backward()  # type: ignore[arg-type]
        for optimizer in (nets, field):
            optimizer.step()
            optimizer.zero_grad()
    return toy.field.detach(), field.state[toy.field]["exp_avg"]


@pytest.mark.parametrize("stage", [None, *STAGES])
def test_growth_and_pruning_equal_tensors_that_really_change_size(two: Ranks, stage: int | None) -> None:
    results = [grown_and_pruned(None, None)] if stage is None else two.run(grown_and_pruned, stage)
    rows, moment = grown_and_pruned_by_hand()
    for field, state in results:
        assert field.shape == rows.shape
        assert (field - rows).abs().max() < TOLERANCE
        assert (state["field"]["exp_avg"][: len(rows)] - moment).abs().max() < TOLERANCE
        assert not state["field"]["param"][len(rows) :].any(), "rows beyond the living moved"
    assert all(same(results[0][1], state) for _, state in results)


def test_who_gathers_may_be_waiting_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU collectives return at once, and the wait is where their result is read."""
    engine, waits = make(None), []
    monkeypatch.setattr(engine_module, "_host", lambda tensor: waits.append(process.is_talking()) or tensor.clone())
    engine.gather()
    assert waits
    assert all(waits)
    assert not process.is_talking()


def refused(me: Process | None, stage: int | None, kind: str) -> tuple[list[StepReport], int, State, State]:
    """Step 3 is spoilt on the last rank only, in a way that depends on `kind`; an untouched twin leaves it out."""
    engine, twin = make(stage), make(stage)
    reports = []
    for step in range(6):
        loss = loss_at(engine, me, step)
        if step == 3 and (me is None or me.rank == me.world - 1):
            field = engine.module.field
            spoilt = {
                "nan loss": loss * math.nan,
                "inf loss": loss + math.inf,
                "inf gradient": loss + (field[0] - field[0].detach()).abs().pow(0.5).sum(),
                "nan gradient": loss
                + torch.where(field[0] > 1e9, field[0], 0 * (field[0] - field[0].detach()).sqrt()).sum(),
            }
            loss = spoilt[kind]
            assert torch.isfinite(loss) == kind.endswith("gradient")
        before = engine.gather()
        reports.append(engine.backward_and_step(loss))
        if step == 3:
            assert same(before, engine.gather())
            assert all(param.grad is None or not param.grad.any() for param in engine.module.parameters())
        else:
            twin.backward_and_step(loss_at(twin, me, step))
    return reports, engine.refused, engine.gather(), twin.gather()


@pytest.mark.parametrize("kind", ["nan loss", "inf loss", "inf gradient", "nan gradient"])
@pytest.mark.parametrize("stage", [None, *STAGES])
def test_a_step_that_is_not_finite_on_one_rank_is_refused_on_all(two: Ranks, stage: int | None, kind: str) -> None:
    results = [refused(None, None, kind)] if stage is None else two.run(refused, stage, kind)
    for reports, count, state, twin in results:
        assert [report.finite for report in reports] == [True, True, True, False, True, True]
        assert math.isnan(reports[3].grad_norm)
        assert count == 1
        assert same(state, twin)


def resting(me: Process | None, stage: int | None) -> list[State]:
    engine = make(stage)
    states = []
    for step, rate in enumerate([1e-2, 0.0, 0.0, 1e-2]):
        engine.set_rates({"nets": rate, "spare": rate, "nothing": rate})
        engine.module.last.requires_grad_(rate > 0)
        engine.backward_and_step(loss_at(engine, me, step))
        states.append(engine.gather())
    return states


@pytest.mark.parametrize("stage", [None, *STAGES])
def test_a_group_with_rate_zero_stands_still(two: Ranks, stage: int | None) -> None:
    reference = resting(None, None)
    for states in [reference] if stage is None else two.run(resting, stage):
        for name in ("first", "last", "extra", "spare"):
            assert all(torch.equal(states[0][name][key], states[2][name][key]) for key in states[0][name])
            assert states[3][name]["step"] == 2
        assert not torch.equal(states[2]["spare"]["param"], states[3]["spare"]["param"]), (
            "weight decay works when it moves"
        )
        assert not torch.equal(states[0]["field"]["param"], states[2]["field"]["param"])
        assert states[3]["field"]["step"] == 4
        assert largest_difference(states[3], reference[3]) < TOLERANCE


def outside_gradients(me: Process | None, stage: int | None) -> list[torch.Tensor]:
    """Nets of this rank's lanes, passed through the engine's forward: their gradients after each of two steps."""
    engine = make(stage)
    torch.manual_seed(5)
    net = nn.Linear(8, 8)
    gradients = []
    for step in range(2):
        net.zero_grad()
        engine.backward_and_step(loss_at(engine, me, step, outside=net))
        gradients.append(net.weight.grad.clone())
    return gradients


@pytest.mark.parametrize("stage", STAGES)
def test_nets_outside_the_engine_get_their_own_ranks_gradient(two: Ranks, stage: int) -> None:
    first, second = two.run(outside_gradients, stage)
    reference = outside_gradients(None, None)
    for a, b, mean in zip(first, second, reference, strict=True):
        assert (a - b).abs().max() > 1e-4, "averaged: these belong to one rank alone"
        assert ((a + b) / 2 - mean).abs().max() < TOLERANCE


def other_order(me: Process, stage: int) -> State:
    """The ranks' graphs are built in another order, and `extra` has a gradient on one rank alone."""
    engine = make(stage)
    for _ in range(5):
        lanes = [*lanes_of(me)]
        terms = []
        for lane in reversed(lanes) if me.rank else lanes:
            rows_B = torch.arange(lane, lane + 9)
            terms.append(engine.forward(rows_B, with_extra=me.rank == 0).value.square().mean())
            weights = (
                (engine.module.last, engine.module.first) if me.rank else (engine.module.first, engine.module.last)
            )
            terms += [weight.square().mean() for weight in weights]
        engine.backward_and_step(torch.stack(terms).mean())
    return engine.gather()


def test_ranks_may_differ_in_their_graphs(two: Ranks) -> None:
    results = {stage: two.run(other_order, stage) for stage in STAGES}
    for first, second in results.values():
        assert same(first, second)
    assert largest_difference(results[0][0], results[1][0]) < TOLERANCE
    assert largest_difference(results[0][0], results[2][0]) < TOLERANCE
    assert results[1][0]["extra"]["exp_avg"].abs().min() > 0


def test_settings_that_do_not_fit_are_named() -> None:
    toy = Toy()
    with pytest.raises(ConfigError, match="parameter extra is in the groups"):
        LocalEngine(toy, [{**g, "params": [p for p in g["params"] if p is not toy.extra]} for g in groups(toy)])
    with pytest.raises(ConfigError, match="parameter extra is in the groups"):
        LocalEngine(toy, [*groups(toy), {**groups(toy)[2], "name": "twice", "params": [toy.extra]}])
    with pytest.raises(ConfigError, match="not trained parameters of the module"):
        LocalEngine(toy, [*groups(toy), {**groups(toy)[2], "name": "other", "params": [nn.Parameter(torch.ones(1))]}])
    with pytest.raises(ConfigError, match=r"zero_stage 3: .* 3 would take the parameters apart too"):
        ZeroEngine(toy, groups(toy), 3)
    with pytest.raises(ConfigError, match="group 'feild'"):
        make(None).set_rates({"feild": 1.0})


def test_a_state_that_does_not_fit_is_refused_whole() -> None:
    engine = make(None)
    train(engine, None, 0, 2)
    state, before = engine.gather(), engine.gather()
    with pytest.raises(CheckpointError, match=r"lacks parameters \['extra'\]"):
        engine.scatter({name: entry for name, entry in state.items() if name != "extra"})
    with pytest.raises(CheckpointError, match=r"parameter last: exp_avg is \[2\]"):
        engine.scatter(state | {"last": state["last"] | {"exp_avg": torch.zeros(2)}})
    with pytest.raises(CheckpointError, match="group nets: parameter extra was stepped 9 times"):
        engine.scatter(state | {"extra": state["extra"] | {"step": torch.tensor(9.0)}})
    shared, optim = flatten(state)
    optim.pop("field:exp_avg")
    with pytest.raises(CheckpointError, match="field:exp_avg is not in the checkpoint"):
        unflatten(shared, optim)
    assert same(engine.gather(), before)
