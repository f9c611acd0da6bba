import io
import struct
import sys
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from flax_vae.train.errors import RunError
from flax_vae.train.report.tensorboard import TensorBoard


def read_events(path):
    """Returns the records of an event file: length, its checksum, data, their checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, events = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[12 + length + 4 :]
    return events


def shown(folder):
    """Returns what TensorBoard shows; a file that starts at a step purges later events of older files."""
    from tensorboardX.proto.event_pb2 import SessionLog

    points = []
    for path in sorted(folder.iterdir()):
        for event in read_events(path):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                points = [point for point in points if point[0] < event.step]
            points += [(event.step, value) for value in event.summary.value]
    return points


def test_no_step_is_shown_twice_after_resuming(tmp_path):
    pytest.importorskip("tensorboardX")
    with closing(TensorBoard(tmp_path, 0)) as board:
        for step in (5, 10, 15):  # the checkpoint is at step 10; then the run is killed
            board.scalars(step, {"loss": 1.0 / step, "held_out/psnr": float("inf")})
    with closing(TensorBoard(tmp_path, 10)) as board:
        for step in (15, 20):
            board.scalars(step, {"loss": 2.0 / step})
    assert len(list(tmp_path.iterdir())) == 2
    found = [(step, value.tag, value.simple_value) for step, value in shown(tmp_path)]
    steps = [(5, 1.0), (10, 1.0), (15, 2.0), (20, 2.0)]
    assert found == [(step, "loss", pytest.approx(over / step)) for step, over in steps]


def test_pictures_keep_their_pixels(tmp_path):
    pytest.importorskip("tensorboardX")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    with closing(TensorBoard(tmp_path, 0)) as board:
        board.image(3, "samples", pixels)
    ((step, value),) = shown(tmp_path)
    assert (step, value.tag) == (3, "samples")
    np.testing.assert_array_equal(Image.open(io.BytesIO(value.image.encoded_image_string)), pixels)


def test_a_missing_tensorboardx_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(RunError, match=r"pip install .*\[tensorboard\]"):
        TensorBoard(tmp_path, 0)
    assert not list(tmp_path.iterdir())
