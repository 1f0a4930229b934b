"""Reading TensorBoard's event files."""

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader


def scalars(run):
    """All scalars of a run by tag: `(step, value)`, ascending; one that was logged twice stands there twice."""
    found = {}
    for path in (run / "tensorboard").glob("events*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return {tag: sorted(values) for tag, values in found.items()}
