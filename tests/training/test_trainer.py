"""`AsyncTrainer` with real threads: the ordinary loop's bits, replay, resume, faults, bad input."""

import itertools
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from qailab.backends import StatevectorBackend
from qailab.errors import (
    BackendError,
    CheckpointError,
    InputError,
    InputTypeError,
    PoolExhaustedError,
    TransientBackendError,
)
from qailab.training import AsyncTrainer, RunLog
from tests.support.lane_training import (
    EPOCHS,
    assert_same,
    loss_fn,
    make_batches,
    make_model,
    make_trainer,
    weights_of,
)


class Disturbed(StatevectorBackend):
    """Fails, or waits for somebody, when it is told to."""

    def __init__(self):
        super().__init__()
        self.calls, self.fails = itertools.count(), lambda call: False
        self._live_gate = threading.Event()
        self._live_gate.set()

    def answers(self, circuit, batch, stop):
        if self.fails(next(self.calls)):
            raise BackendError("it is broken")
        while not self._live_gate.wait(0.001):
            if stop.is_set():
                raise TransientBackendError("cancelled")
        return super().answers(circuit, batch, stop)

    def run(self, circuit, batch):
        return self.submit(circuit, batch).result()


@pytest.mark.parametrize("middle", [[], [nn.BatchNorm1d(2)], [nn.Dropout(0.5)]], ids=str)
def test_one_lane_equals_the_ordinary_loop_bit_for_bit(middle, batches):
    ordinary = make_model(middle=middle)
    optimizer = torch.optim.Adam(ordinary.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for _ in range(EPOCHS):
        for batch in batches:
            optimizer.zero_grad()
            loss_fn(ordinary, batch).backward()
            clip_grad_norm_(ordinary.parameters(), 0.1)
            optimizer.step()
        scheduler.step()

    trainer = make_trainer(make_model(middle=middle), lanes=1, max_staleness=0)
    losses = []
    for step in trainer.steps(batches, EPOCHS):
        clip_grad_norm_(trainer.model.parameters(), 0.1)
        trainer.optimizer.step()
        trainer.scheduler.step() if step.epochs_ended else None
        losses.append(step.loss)
    for name, value in ordinary.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name
    assert len(losses) == EPOCHS * len(batches)


class Twice(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        return self.layer(self.layer(inputs)[..., :2])


def test_a_layer_that_runs_twice_a_batch_has_the_ordinary_loops_noise(batches):
    def make():
        model = make_model()
        return nn.Sequential(model[0], Twice(model[1]), model[2])

    ordinary = make()
    optimizer = torch.optim.Adam(ordinary.parameters(), lr=0.05)
    for batch in batches:
        optimizer.zero_grad()
        loss_fn(ordinary, batch).backward()
        optimizer.step()
    trainer = make_trainer(make(), lanes=1, max_staleness=0)
    trainer.fit(batches, 1)
    assert torch.equal(weights_of(ordinary), weights_of(trainer.model))
    assert int(trainer.model[1].layer.step) == 2 * len(batches)


def adversarial(model, batch):
    """A loss with a gradient of its own, and a pass without one."""
    features, labels = batch
    moved = features.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss_fn(model, (moved, labels)), moved)
    with torch.no_grad():
        target = model(features)
    outputs = model(features + 0.1 * slope.sign())
    return cross_entropy(outputs, labels) + (outputs - target).square().mean()


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_passes_without_grad_and_in_eval_mode_have_their_batchs_noise(mode, batches):
    def trainer(lanes, **options):
        model = make_model().train(mode)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        places = [StatevectorBackend() for _ in range(lanes)]
        return AsyncTrainer(model, optimizer, adversarial, places, **options)

    ran, ordinary = trainer(3), make_model().train(mode)
    ran.fit(batches, 2)
    again = trainer(2, replay=ran.log)
    again.fit(batches, 2)
    assert_same(again, ran)
    optimizer = torch.optim.SGD(ordinary.parameters(), lr=0.1)
    for batch in batches * 2:
        optimizer.zero_grad()
        adversarial(ordinary, batch).backward()
        optimizer.step()
    alone = trainer(1, max_staleness=0)
    alone.fit(batches, 2)
    for name, value in ordinary.state_dict().items():
        assert torch.equal(value, alone.model.state_dict()[name]), name


def varying(model, batch):
    """A loss whose quantum layer is passed as often as the labels say."""
    features, labels = batch
    angles = model[0](features)
    for _ in range(int(labels.sum())):
        angles = model[1](angles)[..., :2]
    return cross_entropy(angles, labels)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_batches_that_pass_a_layer_more_or_less_often_have_noise_that_a_replay_repeats(first):
    features = make_batches(1)[0][0]  # the same ones, at weights that stay
    counts = [first, 1, 2, 0, 1, 2, 1, 1]
    batches = [(features, torch.tensor([1] * count + [0] * (4 - count))) for count in counts]

    def trainer(lanes, lr, **options):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        places = [StatevectorBackend() for _ in range(lanes)]
        return AsyncTrainer(model, optimizer, varying, places, **options)

    ran = trainer(3, 0.1)
    with pytest.warns(UserWarning, match="another number of times than the first one"):
        ran.fit(batches, 2)
    for lanes in (1, 2):
        again = trainer(lanes, 0.1, replay=ran.log)
        with pytest.warns(UserWarning, match="replays are the same"):
            again.fit(batches, 2)
        assert_same(again, ran)

    losses = []
    with pytest.warns(UserWarning, match="another number of times"):
        trainer(1, 0.0).fit(batches, 2, [lambda step: losses.append((step.batch, step.loss))])
    ones = [loss for batch, loss in losses if counts[batch % len(counts)] == 1]
    assert len(set(ones)) == len(ones)


@pytest.mark.parametrize("options", [{}, {"max_staleness": 1}, {"staleness": "scale"}], ids=str)
def test_a_replay_of_the_log_is_the_same_run_bit_for_bit(options, tmp_path):
    data = torch.utils.data.TensorDataset(*map(torch.cat, zip(*make_batches(8), strict=True)))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    ran = make_trainer(lanes=5, seed=3, weighting={0: 0.8, 1: 0.9}, **options)
    ran.fit(loader, EPOCHS)
    applied = [entry for entry in ran.log.entries if entry.applied]
    assert sorted(entry.batch for entry in applied) == list(range(8 * EPOCHS))
    assert max(len(applied) - entry.version for entry in applied) > 1
    ran.log.write(tmp_path / "log.jsonl")
    for lanes in (1, 3):
        torch.rand(lanes)  # what else was drawn makes no difference
        again = make_trainer(make_model(), lanes, seed=3, replay=tmp_path / "log.jsonl")
        again.fit(loader, EPOCHS)
        assert_same(again, ran)
        assert again.log == ran.log == RunLog.read(tmp_path / "log.jsonl")


@pytest.mark.parametrize("steps", [1, 7])
def test_a_resumed_run_and_its_log_are_one_run(steps, tmp_path):
    def make(model=None, lanes=3, **options):  # with numbers of numpy's, as of a sweep
        options = {"lr": np.float64(0.05), "weighting": {0: np.float32(0.5)}} | options
        return make_trainer(model, lanes, **options)

    data = torch.utils.data.TensorDataset(*map(torch.cat, zip(*make_batches(6), strict=True)))
    sampler = torch.utils.data.RandomSampler(data, generator=torch.Generator())
    batches = torch.utils.data.DataLoader(data, 4, sampler=sampler)
    path = tmp_path / "checkpoint.pt"
    stopped = make()
    for step in stopped.steps(batches, EPOCHS, checkpoint=path):
        stopped.optimizer.step()
        for _ in range(step.epochs_ended):
            stopped.scheduler.step()
        if step.number == steps + 1:  # the checkpoint is that of the step before
            break
    resumed = make(make_model(seed=5), lanes=2)
    resumed.load(path)
    resumed.fit(batches, EPOCHS)
    resumed.log.write(tmp_path / "log.jsonl")
    sampler.generator.manual_seed(1)  # whatever was drawn from it
    whole = make(replay=tmp_path / "log.jsonl")
    whole.fit(batches, EPOCHS)
    applied = [entry.batch for entry in resumed.log.entries if entry.applied]
    assert sorted(applied) == list(range(EPOCHS * len(batches)))
    assert_same(whole, resumed)


def test_lanes_fail_hang_leave_and_join_and_no_batch_is_lost(batches):
    broken, hangs, good = Disturbed(), Disturbed(), Disturbed()
    broken.fails = lambda call: True
    hangs._live_gate.clear()
    trainer = make_trainer(places=[broken, hangs, good, StatevectorBackend()], timeout=0.2)

    def callback(step):
        if step.number == 4:
            trainer.remove_lane(3)
        if step.number == 6:
            trainer.add_lane(StatevectorBackend())

    trainer.fit(batches, 5, [callback])
    applied = [entry.batch for entry in trainer.log.entries if entry.applied]
    assert sorted(applied) == list(range(5 * len(batches)))
    states = [row["state"] for row in trainer.stats()]
    assert states[0] == "lost"
    assert states[3] == "left"
    assert trainer.stats()[0]["failed"] == 3
    assert trainer.stats()[4]["applied"] > 0
    assert len(trainer.table().splitlines()) == 6


def test_what_an_earlier_loop_left_behind_may_arrive_in_the_next(batches, monkeypatch):
    monkeypatch.setattr("qailab.training.trainer._CLOSE_SECONDS", 1.0)
    gate, stuck = threading.Event(), []

    def waits(model, batch):  # and hears of no cancel
        lane = threading.current_thread()
        if lane.name == "qailab-lane-0" and not stuck:
            stuck.append(lane)
            gate.wait(60)
        elif gate_opens and lane.name == "qailab-lane-1":  # with the same batch
            gate.set()
            stuck[0].join(60)
        return loss_fn(model, batch)

    gate_opens, model = False, make_model()
    optimizer = torch.optim.SGD(model.parameters())
    places = [StatevectorBackend() for _ in range(3)]
    trainer = AsyncTrainer(model, optimizer, waits, places, max_staleness=99)
    for step in trainer.steps(batches, 1):
        if step.number == 2:
            break
    assert [row["state"] for row in trainer.stats()] == ["lost", "idle", "idle"]
    gate_opens = True
    trainer.fit(batches, 1)
    applied = [entry.batch for entry in trainer.log.entries if entry.applied]
    assert sorted(applied) == list(range(len(batches)))
    assert trainer.stats()[0]["state"] == "idle"


def test_all_lanes_lost_is_an_error_that_keeps_the_checkpoint_and_can_be_gone_on_from(
    batches, tmp_path
):
    place = Disturbed()
    place.fails = lambda call: call >= 8  # two calls a batch
    trainer = make_trainer(places=[place])
    with pytest.raises(PoolExhaustedError, match=r"after 4 steps; .*c\.pt is kept.*it is broken"):
        trainer.fit(batches, EPOCHS, checkpoint=tmp_path / "c.pt")
    with pytest.raises(PoolExhaustedError, match="after 4 steps; there is no checkpoint"):
        trainer.fit(batches, EPOCHS, checkpoint=tmp_path / "none.pt")
    trainer.add_lane(StatevectorBackend())
    trainer.fit(batches, EPOCHS)
    whole = make_trainer(lanes=1)
    whole.load(tmp_path / "c.pt")
    whole.fit(batches, EPOCHS)
    assert_same(whole, trainer)


def test_an_error_of_the_model_ends_the_run_at_once(batches):
    model = make_model()

    def wrong(copy, batch):
        loss = loss_fn(copy, batch)
        if threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError("mine")
        return loss

    optimizer = torch.optim.SGD(model.parameters())
    trainer = AsyncTrainer(model, optimizer, wrong, [StatevectorBackend()])
    with pytest.raises(ZeroDivisionError) as caught:
        trainer.fit(batches, 1)
    assert "in lane 0 (StatevectorBackend()), batch 0" in caught.value.__notes__


def test_steps_are_divided_by_staleness_whatever_the_optimizer(batches):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    places = [Disturbed(), Disturbed()]
    trainer = AsyncTrainer(
        model, optimizer, loss_fn, places, max_staleness=0, staleness="scale", weighting={1: 0.5}
    )
    before = weights_of(model)
    for step in trainer.steps(batches, EPOCHS):
        optimizer.step()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        weight = 0.5 if step.lane == 1 else 1.0
        assert step.scale == weight / (1 + step.staleness)
        assert torch.allclose(before - weights_of(model), step.scale * gradient, atol=1e-6)
        assert optimizer.param_groups[0]["lr"] == 1.0
        before = weights_of(model)


def test_what_lanes_cannot_share_is_said(batches):
    with pytest.warns(UserWarning, match="cannot be repeated bit for bit"):
        make_trainer(make_model(middle=[nn.Dropout(0.5)]))
    trainer = make_trainer(make_model(middle=[nn.BatchNorm1d(2)]))
    with pytest.warns(UserWarning, match="buffers that change"):
        trainer.fit(batches, 1)


def test_what_is_trained_does_not_change_under_the_lanes(batches):
    trainer = make_trainer()
    steps = trainer.steps(batches, 1)
    next(steps)
    trainer.model[0].requires_grad_(False)
    with pytest.raises(InputError, match="frozen or unfrozen since the trainer was made"):
        next(steps)


def test_a_loss_that_is_none_is_said_before_anything_runs(batches):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters())
    trainer = AsyncTrainer(model, optimizer, lambda *_: None, [StatevectorBackend()])
    with pytest.raises(InputError, match=r"loss_fn must return the loss.*got NoneType"):
        trainer.fit(batches, 1)


def test_a_scheduler_that_needs_a_metric_is_refused():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters())
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(InputError, match=r"call scheduler.step\(metric\) yourself"):
        AsyncTrainer(model, optimizer, loss_fn, [StatevectorBackend()], scheduler=plateau)


def test_a_loss_module_wants_pairs():
    with pytest.raises(InputError, match="a batch is a pair of inputs and targets, got Tensor"):
        make_trainer().fit([torch.rand(2, 3)], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_staleness": -1}, "max_staleness must be an integer of at least 0, got -1"),
        ({"staleness": "wait"}, "staleness must be one of 'drop', 'scale'; got 'wait'"),
        ({"weighting": "best"}, "weighting must be one of"),
        ({"weighting": {0: 0.0}}, "the weight of lane 0 must be positive, got 0.0"),
        ({"weighting": "quality"}, "needs a calibration, which lane 0"),
        ({"timeout": 0}, "timeout must be a positive number of seconds"),
        ({"lanes": []}, "at least one backend or pool"),
        ({"lanes": [StatevectorBackend]}, r"write StatevectorBackend\(\), with parentheses"),
        ({"lanes": ["ibm_fez"]}, r"lane 0 must be .*write IBMBackend\('ibm_fez'\)"),
        ({"model": nn.Linear(1, 1)}, "with a quantum layer"),
        ({"loss_fn": "mse"}, "must be a module such as CrossEntropyLoss"),
        ({"optimizer": "adam"}, "must be one of torch.optim"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(change, message):
    model = make_model()
    given = {
        "model": model, "optimizer": torch.optim.SGD(model.parameters()), "loss_fn": loss_fn,
        "lanes": [StatevectorBackend()],
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        AsyncTrainer(**(given | change))


def test_an_optimizer_of_other_parameters_is_refused():
    optimizer = torch.optim.Adam(make_model().parameters())
    with pytest.raises(InputError, match="the optimizer has 5 parameters that are not the model's"):
        AsyncTrainer(make_model(), optimizer, loss_fn, [StatevectorBackend()])
    model = make_model()
    with pytest.raises(InputError, match="LBFGS"):
        AsyncTrainer(model, torch.optim.LBFGS(model.parameters()), loss_fn, [StatevectorBackend()])


def test_a_model_that_cannot_be_copied_names_the_attribute():
    model = make_model()
    model[0].lock = threading.Lock()
    with pytest.raises(InputError, match=r"attribute 0\.lock \(lock\) cannot be copied"):
        make_trainer(model)


def test_a_loss_of_another_model_and_a_loader_without_length_are_refused(batches):
    model, other = make_model(), make_model()
    trainer = AsyncTrainer(
        model, torch.optim.SGD(model.parameters()), lambda _, batch: loss_fn(other, batch),
        [StatevectorBackend()],
    )  # fmt: skip
    with pytest.raises(InputError, match="does not depend on the model that loss_fn was given"):
        trainer.fit(batches, 1)
    for loader, error in ((iter(batches), InputTypeError), ([], InputError)):
        with pytest.raises(error, match="loader"):
            make_trainer().fit(loader, 1)


def test_logs_and_checkpoints_of_other_runs_are_refused(batches, tmp_path):
    ran = make_trainer()
    ran.fit(batches, 1)
    for other, data, options, what in (
        (make_model(seed=8), batches, {}, "another model "),
        (make_model(shots=64), batches, {}, "another model "),
        (make_model(), make_batches(seed=2), {}, "another data "),
        (make_model(), batches[:-1], {}, "another batches "),
        (make_model(), batches, {"seed": 1}, "another seed "),
        (make_model(), batches, {"lr": 0.1}, "another optimizer "),
    ):
        with pytest.raises(InputError, match=what):
            make_trainer(other, replay=ran.log, **options).fit(data, 1)
    (tmp_path / "no.log").write_text("[1]\n")
    with pytest.raises(InputError, match="is not the log of a run"):
        make_trainer(replay=tmp_path / "no.log")
    (tmp_path / "no.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="it is damaged"):
        make_trainer().load(tmp_path / "no.pt")
    with pytest.raises(CheckpointError, match="its seed is 0, not 1"):
        make_trainer(seed=1).load_state_dict(ran.state_dict())
    wider = make_model()
    wider[2] = nn.Linear(4, 3)
    with pytest.raises(CheckpointError, match="does not fit"):
        make_trainer(wider).load_state_dict(ran.state_dict())
