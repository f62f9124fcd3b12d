"""What every registered link does, those of other packages too."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mapmerge_core.errors import RegistryError, SearchError
from mapmerge_core.registries import LINKS
from mapmerge_core.search.links.base import make_link
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate

BOUNDS = [(0.0, 1.0), (-2.0, 5.0), (0.0, 1e-3), (0.0, np.inf), (-3.0, np.inf), (-np.inf, 1.0), (-np.inf, np.inf)]


def n_finite(bounds):
    return int(np.isfinite(bounds).sum())


CASES = [(name, bounds) for name in LINKS.names for bounds in BOUNDS if n_finite(bounds) == LINKS[name].n_bounds]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]} {case[1]}")
def link(request):
    name, bounds = request.param
    return make_link(name, bounds)


@pytest.mark.parametrize("name", LINKS.names)
def test_it_describes_itself(name):
    kind = LINKS[name]
    assert kind.name == name
    assert kind.help().endswith(".")
    assert any(case[0] == name for case in CASES)
    assert make_link(name).bounds == kind.bounds


def test_values_stay_within_the_bounds_and_rise(link):
    z = np.concatenate([[-1e300, -1e3], np.linspace(-40, 40, 801), [1e3, 1e300]])
    y = link.value(z)
    assert y.min() >= link.low
    assert y.max() <= link.high
    assert (np.diff(y) >= 0).all()
    assert (np.diff(link.value(np.linspace(-5, 5, 101))) > 0).all()


def test_the_slope_is_that_of_finite_differences(link):
    z, step = np.linspace(-6, 6, 61), 1e-5
    numeric = (link.value(z + step) - link.value(z - step)) / (2 * step)
    np.testing.assert_allclose(link.slope(z), numeric, rtol=1e-5, atol=1e-6 * np.abs(numeric).max())
    for far in (-1e3, 1e3):
        slope = link.slope(np.array([far]))
        assert np.isfinite(slope).all()
        assert slope[0] >= 0


def test_the_inverse_finds_what_gave_a_value(link):
    z = np.linspace(-3.5, 3.5, 29)  # values nearer to a bound are moved inside
    np.testing.assert_allclose(link.inverse(link.value(z)), z, atol=1e-9)


def test_the_inverse_is_finite_on_the_bounds_and_rises(link):
    inside = link.value(np.linspace(-4, 4, 9))
    ends = [end for end in (link.low, link.high) if np.isfinite(end)]
    y = np.unique(np.concatenate([inside, ends]))
    z = link.inverse(y)
    assert np.isfinite(z).all()
    assert (np.diff(z) >= 0).all()
    for end in ends:
        assert np.isfinite(link.inverse(np.full(5, end))).all()


def test_shapes_are_kept(link):
    z = np.linspace(-1, 1, 12).reshape(3, 4)
    for result in (link.value(z), link.slope(z), link.inverse(link.value(z))):
        assert result.shape == (3, 4)
        assert result.dtype == np.float64


def test_values_outside_the_bounds_are_refused(link):
    y = link.value(np.linspace(-2, 2, 5))
    link.check_values(y)
    for end, beyond in ((link.low, -0.1), (link.high, 0.1)):
        if np.isfinite(end):
            link.check_values(np.append(y, end))
            with pytest.raises(SearchError, match="outside its bounds"):
                link.check_values(np.append(y, end + beyond))


def test_errors_have_a_unit_even_where_all_values_are_equal(link):
    for y in (link.value(np.linspace(-2, 2, 5)), np.full(4, link.value(np.zeros(1))[0])):
        assert 0 < link.error_unit(y) < np.inf


@pytest.mark.parametrize("name", LINKS.names)
def test_links_are_equal_where_name_and_bounds_are(name):
    suited = [bounds for case, bounds in CASES if case == name]
    links = [make_link(name, bounds) for bounds in suited]
    assert links == [make_link(name, bounds) for bounds in suited]
    assert [hash(link) for link in links] == [hash(make_link(name, bounds)) for bounds in suited]
    for one, other in itertools.combinations(links, 2):
        assert one != other
    assert links[0] != make_link(next(other for other in LINKS.names if other != name))


@pytest.mark.parametrize("name", LINKS.names)
@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.5, 0.5), (np.nan, 1.0), (0.0, np.nan)])
def test_bounds_that_are_none_are_refused(name, bounds):
    if LINKS[name].bounds is None:  # it ignores them
        assert make_link(name, bounds) == make_link(name)
        return
    with pytest.raises(SearchError, match="empty: the lower one comes first"):
        make_link(name, bounds)


@pytest.mark.parametrize("name", LINKS.names)
def test_too_few_bounds_are_refused(name):
    for bounds in BOUNDS:
        if n_finite(bounds) < LINKS[name].n_bounds:
            with pytest.raises(SearchError, match=f"{name} link needs"):
                make_link(name, bounds)


def test_a_link_that_is_called_linear_is_the_quadratic_form_itself(link):
    z = np.linspace(-3, 3, 13)
    assert link.is_linear == bool(np.array_equal(link.value(z), z) and np.array_equal(link.slope(z), np.ones(13)))


def test_a_surrogate_finds_the_quadratic_behind_the_values(link):
    rng = np.random.default_rng(0)
    C, new = rng.uniform(size=(30, 2)), rng.uniform(size=(50, 2))

    def truth(c):
        return link.value(0.4 + 2 * c[:, 0] - 3 * c[:, 1] + c[:, 0] * c[:, 1] - 1.5 * c[:, 0] ** 2)

    surrogate = QuadraticSurrogate(link.name, bounds=(link.low, link.high), ridge=0.0).fit(C, truth(C))
    scale = np.ptp(truth(new))
    np.testing.assert_allclose(surrogate.predict(new), truth(new), atol=1e-6 * scale)


@pytest.mark.parametrize("name", LINKS.names)
def test_a_surrogate_stays_finite_where_every_value_sits_on_a_bound(name):
    bounds = next(bounds for case, bounds in CASES if case == name)
    end = next((end for end in bounds if np.isfinite(end)), 0.0)
    C = np.random.default_rng(1).uniform(size=(12, 2))
    surrogate = QuadraticSurrogate(name, bounds=bounds).fit(C, np.full(12, end))
    assert np.isfinite(surrogate.predict(C)).all()
    assert np.isfinite(surrogate.gradient(C)).all()


def test_a_name_that_is_none_is_refused_with_the_list():
    with pytest.raises(RegistryError, match=r"no link 'tanh': choose one of .*sigmoid"):
        make_link("tanh")
