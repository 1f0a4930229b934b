"""Shared between the tests of training."""

import pytest
from tiny import Sums, make_data, make_module


@pytest.fixture
def data():
    return make_data()


@pytest.fixture
def module():
    return make_module()


@pytest.fixture
def sums():
    return Sums(batch=8)
