"""The loop around a step: log, save, look, stop. The same for pretraining and adaptation."""

from collections.abc import Callable

from fiag_dist.monitoring.monitor import Clock, Monitor
from fiag_dist.stages import due
from fiag_dist.training import looks
from fiag_dist.training.step import Training


def run(
    training: Training,
    monitor: Monitor,
    save: Callable[[], None],
    stopped: Callable[[], bool] = lambda: False,
    between: Callable[[], None] = lambda: None,
) -> bool:
    """Trains to the end, or until `stopped`, which all ranks must answer alike; saves on the way and at the end. Returns whether the end was reached.

    between: called after each step by all ranks.
    """
    config, clock, begun = training.config, Clock(), training.step
    if training.done:  # a finished run that was started again
        return True
    while not training.done and not stopped():
        with clock.data():
            lessons = training.feed.next(training.step)
        tags = training.learn(lessons)
        times = clock.step(training.lanes, training.engine.talk.take_s())
        with clock.aside("time/between_ms"):
            between()
        monitor.add(training.step, tags | times, config.log_every)
        if due(training.step, config.checkpoint_every) and not training.done:
            with clock.aside("time/save_ms"):
                save()  # first: its files are written while people are looked at
        if due(training.step, config.images_every) and not training.done:
            with clock.aside("time/look_ms"):
                look(training, monitor)
    if training.step > begun:  # else there is nothing new, and a save would first take away what it began from
        save()
    if training.done:
        look(training, monitor)
    return training.done


def look(training: Training, monitor: Monitor) -> None:
    """Scores and pictures of the people that are watched; films too, when they are due or the run is done."""
    every = training.config.films_every
    filmed = every > 0 and (training.done or due(training.step, every))
    seen = looks.look(training, training.feed.fps if filmed else 0)
    monitor.add(training.step, seen.scores, every=1)
    monitor.pictures(training.step, seen.pictures)
