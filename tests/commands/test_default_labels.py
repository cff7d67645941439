"""The labels that pictures are drawn for when nobody names any: one answer for training, sampling and evaluation."""
import numpy as np
import pytest

from dipddpm_jax.commands.labels import chosen_labels, default_labels
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.errors import UserError

ONE, SEVERAL = (Facts((4, 4, 3), tuple("abc"), multi_hot) for multi_hot in (False, True))


def test_classes_and_held_out_sets_come_in_turn():
    held = np.array([[1, 1, 0], [0, 1, 0]], np.float32)
    assert default_labels(Facts((4, 4, 3)), 5, held) is None
    np.testing.assert_array_equal(default_labels(ONE, 5), [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(default_labels(ONE, 5, np.array([2, 2])), [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(default_labels(SEVERAL, 5, held), held[[0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(default_labels(SEVERAL, 4), np.eye(3)[[0, 1, 2, 0]])
    with pytest.raises(UserError, match="no labels that this model knows"):
        default_labels(SEVERAL, 5, held[:, :2])


@pytest.mark.parametrize("facts", [ONE, SEVERAL])
def test_naming_no_labels_is_the_default(facts):
    np.testing.assert_array_equal(chosen_labels((), facts, 5), default_labels(facts, 5))
