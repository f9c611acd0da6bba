import json

import pytest

from flax_vae.convert.files.json import loads_object


def test_objects_are_read():
    value = {"a": [1, 2.5, None, True], "é": {"b": "c", "a": {}}}
    assert loads_object(json.dumps(value).encode()) == value
    assert loads_object(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "delimiter"),
        (b"[1]", "it holds a list, an object of named fields was expected"),
        (b"null", "it holds a NoneType"),
        (b'{"a": 1, "b": 2, "a": 1}', "it names 'a' more than once"),
        (b'{"x": {"a": 1, "\\u0061": 2}}', "it names 'a' more than once"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": "\xff"}', "decode"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "digits"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
    ids=range(11),
)
def test_anything_else_is_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        loads_object(text)
