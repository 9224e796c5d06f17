import numpy as np

from fl.algorithms import Mean


def test_parameters_give_a_descent_direction():
    """Where sites send parameters, the direction from the model to their mean is its opposite; without data there is none."""
    model = np.array([1.0, 2.0])
    assert Mean(None, parameters=np.array([0.5, 3.0])).descent(model).tolist() == [0.5, -1.0]
    assert Mean(np.array([4.0, 5.0])).descent(model).tolist() == [4.0, 5.0]
    assert Mean(None, weight=0).descent(model) is None
