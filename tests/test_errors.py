import pickle

from qailab import errors

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type)]


def test_every_error_has_the_same_root_is_drawn_in_the_tree_and_survives_pickling():
    for kind in ALL:
        assert issubclass(kind, errors.QailabError), kind
        assert kind.__name__ in errors.__doc__
        copy = pickle.loads(pickle.dumps(kind("what was expected")))
        assert (type(copy), str(copy)) == (kind, "what was expected")
