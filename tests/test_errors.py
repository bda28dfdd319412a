import pickle

import pytest

from qailab import errors

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type)]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_the_same_root_and_survives_pickling(kind):
    assert issubclass(kind, errors.QailabError)
    copy = pickle.loads(pickle.dumps(kind("what was expected")))
    assert type(copy) is kind
    assert str(copy) == "what was expected"


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_drawn_in_the_tree(kind):
    assert kind.__name__ in errors.__doc__
