"""Spaces: the one form of a point, the map from the unit cube, and designs that are even."""

import itertools

import numpy as np
import pytest
from scipy.stats import kstest

from mapmerge_core.errors import MapMergeError, PointError, SearchError
from mapmerge_core.search.designs import make_design
from mapmerge_core.search.spaces import Box, Product, Simplex, SinglePoint, space_from_dict

SPACES = {
    "unit box": Box("ab"),
    "box": Box("abc", [-1.0, 0.0, 0.1], [2.0, 0.6, 1.7], default=0.3),
    "simplex of two": Simplex("ab"),
    "simplex": Simplex("abcd", default=[1, 2, 3, 4]),
    "product": Product([Simplex("abc"), Box(["scale"], 0.0, 2.0, default=1.0)]),
    "product of simplexes": Product([Simplex("abc"), Simplex("de"), Box("fg", -0.3, 0.6)]),
}


def corners_of(space):
    """The images of the unit cube's corners."""
    return np.unique(space.from_unit(np.array(list(itertools.product((0.0, 1.0), repeat=space.n_free)))), axis=0)


@pytest.fixture(params=SPACES, ids=str)
def space(request):
    return SPACES[request.param]


@pytest.fixture
def rows(space):
    return space.sample(500, np.random.default_rng(0))


class TestPoints:
    def test_canonical_points_are_their_own_canonical_form_to_the_last_bit(self, space, rows):
        once = space.points(rows)
        assert space.points(once).tobytes() == once.tobytes()
        for row in once[:20]:
            assert space.point(row.tolist()).tobytes() == row.tobytes()

    def test_one_row_is_as_it_is_among_others(self, space, rows):
        assert all(
            space.point(row).tobytes() == canonical.tobytes()
            for row, canonical in zip(rows, space.points(rows), strict=True)
        )

    def test_they_are_read_only_copies(self, space):
        given = space.default.copy()
        point = space.point(given)
        assert point.dtype == np.float64
        assert not np.shares_memory(point, given)
        with pytest.raises(ValueError, match="read-only"):
            point[0] = 0.5

    def test_no_zero_is_negative(self):
        assert not np.signbit(Box("ab").point([-0.0, 0.5])).any()
        assert not np.signbit(Simplex("ab").points([[-0.0, 1.0], [-1e-13, 1.0]])).any()
        assert not np.signbit(SPACES["product"].point([1.0, -0.0, 0.0, -0.0])).any()
        assert not np.signbit(Box("ab", -0.0, 1.0).default).any()

    def test_weights_are_divided_by_their_sum(self):
        simplex = Simplex("abc")
        np.testing.assert_array_equal(simplex.point([2, 1, 1]), [0.5, 0.25, 0.25])
        np.testing.assert_array_equal(simplex.point([0.25, 0.25, 0.25]), simplex.point([1, 1, 1]))
        np.testing.assert_array_equal(simplex.point([1e308, 1e308, 0]), [0.5, 0.5, 0])
        np.testing.assert_allclose(simplex.points(np.random.default_rng(0).uniform(size=(99, 3))).sum(axis=1), 1, 1e-15)

    def test_shares_keep_their_bits(self):
        thirds = np.array([0.1, 0.2, 0.7])
        assert Simplex("abc").point(thirds).tobytes() == thirds.tobytes()

    def test_canonical_weights_at_the_edges_of_the_tolerances_stay_as_they_are(self):
        simplex = Simplex("abcd")
        for off in (1e-9, -1e-9, 0.9999e-9, 1.0001e-9, 1e-12):
            once = simplex.point([-1e-12, 0.5 + off, 0.5, -1e-12])
            assert simplex.point(once).tobytes() == once.tobytes()

    @pytest.mark.parametrize(
        ("x", "words"),
        [
            ([0.5, 0.5], r"has 3 coordinates \(a, b, c\), not shape \(2,\)"),
            (0.5, r"not shape \(\)"),
            ([0.5, np.nan, 0.5], "must be finite"),
            ([np.inf, 0.5, 0.5], "must be finite"),
            ([0, 0, 0], "Every weight is zero: give one of a, b, c a weight above 0"),
            ([0.5, 0.6, -0.1], "A weight is negative"),
        ],
    )
    def test_what_is_no_point_of_a_simplex_is_said(self, x, words):
        with pytest.raises(PointError, match=words):
            Simplex("abc").point(x)

    @pytest.mark.parametrize("X", [[[0.5]], [0.5, 0.5], [[[0.5, 0.5]]], [[0.5, np.nan]], [[np.inf, 0.5]]])
    def test_rows_that_are_no_points_of_a_box_are_refused(self, X):
        with pytest.raises(PointError):
            Box("ab").points(X)

    def test_a_box_takes_points_outside_and_knows_them(self):
        box = Box("ab", 0.0, 0.6)
        np.testing.assert_array_equal(box.point([1, 0]), [1, 0])
        inside = box.contains([[1, 0], [0.6, 0], [0.6 + 1e-13, -1e-13], [0.6 + 1e-9, 0]])
        np.testing.assert_array_equal(inside, [False, True, True, False])

    def test_a_simplex_holds_what_sums_to_1(self):
        inside = Simplex("ab").contains([[0.5, 0.5], [0.5, 0.6], [1.1, -0.1], [1 + 1e-13, -1e-13]])
        np.testing.assert_array_equal(inside, [True, False, False, True])

    def test_samples_are_contained(self, space, rows):
        assert space.contains(rows).all()
        assert space.contains(space.default[None]).all()


class TestMaps:
    def test_the_way_to_the_cube_and_back_ends_where_it_began(self, space, rows):
        U = space.to_unit(rows)
        assert U.shape == (500, space.n_free)
        np.testing.assert_allclose(space.from_unit(U), rows, atol=1e-12)
        V = np.random.default_rng(1).uniform(size=(100, space.n_free))
        np.testing.assert_allclose(space.to_unit(space.from_unit(V)), V, atol=1e-9)

    def test_corners_and_anchors_survive_it(self, space):
        edge = [anchor for anchor in space.anchors if space.contains(anchor[None])[0]]
        for X in (corners_of(space), np.array(edge)):
            np.testing.assert_allclose(space.from_unit(space.to_unit(X)), X, atol=1e-12)

    def test_images_of_the_cube_lie_in_the_space(self, space):
        U = np.vstack([np.random.default_rng(2).uniform(size=(500, space.n_free)), np.eye(space.n_free)])
        X = space.from_unit(U)
        assert space.contains(X).all()
        for ends in (np.zeros((1, space.n_free)), np.ones((1, space.n_free))):
            assert space.contains(space.from_unit(ends)).all()

    def test_free_coordinates_are_all_but_the_last_weight_of_each_simplex(self, space, rows):
        lasts = {"simplex": [3], "simplex of two": [1], "product": [2], "product of simplexes": [2, 4]}
        name = next(name for name in SPACES if SPACES[name] == space)
        np.testing.assert_array_equal(space.free(rows), np.delete(rows, lasts.get(name, []), axis=1))

    def test_the_jacobian_is_that_of_finite_differences(self, space):
        U = np.random.default_rng(3).uniform(0.05, 0.95, size=(20, space.n_free))
        step = 1e-6
        for j in range(space.n_free):
            change = np.zeros(space.n_free)
            change[j] = step
            ends = [space.free(space.from_unit(U + sign * change)) for sign in (1, -1)]
            np.testing.assert_allclose(space.unit_jacobian(U)[:, :, j], (ends[0] - ends[1]) / (2 * step), atol=1e-8)

    def test_a_box_never_ends_above_its_high_end(self):
        box = Box("abc", [-0.2, 0.1, -1.0], [0.6, 1.7, 0.3])
        assert (box.from_unit(np.ones((1, 3)))[0] == box.high).all()


class TestDesigns:
    @pytest.mark.parametrize("n", [2, 3, 5])
    def test_samples_of_a_simplex_are_uniform(self, n):
        # A weight of a uniform point of the simplex is a Beta(1, n - 1) number, and all weights are alike.
        rows = Simplex("abcdefgh"[:n]).sample(4000, np.random.default_rng(0))
        for weights in rows.T:
            assert kstest(weights, "beta", (1, n - 1)).pvalue > 1e-3
        dirichlet = np.random.default_rng(1).dirichlet(np.ones(n), 4000)
        assert kstest((rows**2).sum(axis=1), (dirichlet**2).sum(axis=1)).pvalue > 1e-3

    def test_samples_of_a_product_are_uniform_in_each_part(self):
        rows = SPACES["product"].sample(4000, np.random.default_rng(0))
        assert kstest(rows[:, 1], "beta", (1, 2)).pvalue > 1e-3
        assert kstest(rows[:, 3] / 2, "uniform").pvalue > 1e-3

    @pytest.mark.parametrize("how", ["sobol", "latin"])
    def test_sobol_and_latin_points_are_more_even_than_chance(self, space, how):
        X = getattr(space, how)(256, 0)
        assert space.contains(X).all()
        assert space.points(X).shape == (256, space.n)
        random = [space.sample(256, np.random.default_rng(seed)).mean(axis=0) for seed in range(50)]
        exact = space.sample(200_000, np.random.default_rng(99)).mean(axis=0)
        chance = np.sqrt(np.mean([(mean - exact) ** 2 for mean in random], axis=0))
        assert (np.abs(X.mean(axis=0) - exact) < 0.7 * chance + 1e-3).all()

    @pytest.mark.parametrize("how", ["sobol", "latin"])
    def test_a_seed_gives_one_design(self, space, how):
        first, again, other = (getattr(space, how)(16, seed) for seed in (4, 4, 5))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_a_latin_hypercube_has_a_point_in_every_slice(self):
        X = Box("abc", -1, 1).latin(20, 3)
        for column in X.T:
            np.testing.assert_array_equal(np.sort(np.floor((column + 1) * 10)), np.arange(20))

    @pytest.mark.parametrize(("n", "most", "steps"), [(2, 11, 10), (3, 66, 10), (3, 65, 9), (4, 20, 3), (8, 36, 2)])
    def test_a_simplexs_grid_is_all_weights_that_are_multiples(self, n, most, steps):
        grid = Simplex("abcdefgh"[:n]).grid(most)
        rows = [row for row in itertools.product(range(steps + 1), repeat=n) if sum(row) == steps]
        assert sorted(map(tuple, np.round(grid * steps).astype(int))) == sorted(rows)
        np.testing.assert_allclose(grid * steps, np.round(grid * steps), atol=1e-12)
        assert Simplex("abcdefgh"[:n]).contains(grid).all()

    def test_a_grids_shares_are_those_that_people_type_to_the_last_bit(self):
        rows = Simplex("ab").grid(11).tolist()
        assert [row for row in rows if row[0] in (0.3, 0.9)] == [[0.3, 0.7], [0.9, 0.1]]

    def test_a_grid_with_the_centroid_in_it_has_it_once_beside_the_anchors(self):
        design = make_design("grid", 13, Simplex("abc"))
        np.testing.assert_array_equal(design[:4], Simplex("abc").anchors)
        assert len(design) == 10  # all thirds: three vertices, the centroid and six more

    def test_grids_hold_at_most_as_many_points_each_once(self, space):
        for most in (1, 2, 5, 30, 200, 1000):
            grid = space.grid(most)
            assert grid.shape[1] == space.n
            assert len(grid) <= most
            assert len(np.unique(grid, axis=0)) == len(grid)
            assert space.contains(grid).all()
        assert len(space.grid(1000)) > 50

    def test_a_products_grid_is_no_smaller_for_a_root_that_was_rounded(self):
        cube = Product([Box("a"), Box("b"), Box("c")])
        assert len(cube.grid(1000)) == 1000

    @pytest.mark.parametrize("kind", ["uniform", "sobol", "grid"])
    def test_designs_start_with_the_anchors_and_stay_inside(self, space, kind):
        design = make_design(kind, 120, space, seed=2)
        n_anchors = len(space.anchors)
        np.testing.assert_array_equal(design[:n_anchors], space.anchors)
        assert space.contains(design[n_anchors:]).all()
        assert len(np.unique(design, axis=0)) == len(design) <= 120

    def test_designs_have_no_other_ends_on_a_simplex(self):
        with pytest.raises(SearchError, match="no lowest and highest coefficient"):
            make_design("uniform", 20, Simplex("abc"), high=0.6)

    def test_anchors_of_a_box_are_the_origin_and_the_models(self):
        np.testing.assert_array_equal(Box("ab", 0.2, 0.6).anchors, [[0, 0], [1, 0], [0, 1]])

    def test_anchors_of_a_simplex_are_its_vertices_and_its_centroid(self):
        np.testing.assert_array_equal(Simplex("abc").anchors[:3], np.eye(3))
        np.testing.assert_allclose(Simplex("abc").anchors[3], 1 / 3, rtol=1e-15)

    def test_anchors_of_a_product_vary_one_part_and_hold_the_others(self):
        product = Product([Simplex("ab"), Box(["s"], 0, 2, default=1.0)])
        expected = [[1, 0, 1], [0, 1, 1], [0.5, 0.5, 1], [0.5, 0.5, 0]]
        np.testing.assert_array_equal(product.anchors, expected)

    def test_corners_are_the_vertices(self):
        assert sorted(map(tuple, corners_of(Simplex("abc")))) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
        assert len(corners_of(Box("abc", -1, 1))) == 8

    def test_an_anchor_is_a_point_that_is_canonical(self, space):
        assert space.points(space.anchors).tobytes() == space.anchors.tobytes()
        assert space.point(space.default).tobytes() == space.default.tobytes()


class TestDescriptions:
    def test_a_space_reads_back_equal(self, space):
        again = space_from_dict(space.to_dict())
        assert again == space
        assert hash(again) == hash(space)
        np.testing.assert_array_equal(again.default, space.default)
        np.testing.assert_array_equal(again.anchors, space.anchors)

    def test_spaces_differ(self):
        assert len({*SPACES.values(), SinglePoint()}) == len(SPACES) + 1
        assert Box("ab") != Box("ab", 0, 2)
        assert Simplex("ab") != Simplex("ac")
        assert Box("ab") != "ab"

    @pytest.mark.parametrize(
        "values", [{}, {"kind": "ball"}, {"kind": "box"}, {"kind": "box", "names": ["a"], "low": 1, "high": 0}]
    )
    def test_what_describes_none_is_refused(self, values):
        with pytest.raises(SearchError):
            space_from_dict(values)

    def test_a_single_point_has_nothing_to_choose(self):
        single = SinglePoint()
        assert (single.n, single.n_free, single.names) == (0, 0, ())
        assert single.point([]).shape == (0,)
        assert single.contains(np.empty((3, 0))).all()
        assert space_from_dict(single.to_dict()) == single
        assert single.sample(2, np.random.default_rng(0)).shape == (2, 0)
        assert single.free(np.empty((2, 0))).shape == single.from_unit(np.empty((2, 0))).shape == (2, 0)
        assert single.unit_jacobian(np.empty((2, 0))).shape == (2, 0, 0)
        assert single.grid(9).shape == (1, 0)
        with pytest.raises(PointError):
            single.point([0.5])

    def test_other_ends(self):
        wider = Box("ab", 0, 1, default=0.3).within(-1, None)
        np.testing.assert_array_equal([wider.low, wider.high, wider.default], [[-1, -1], [1, 1], [0.3, 0.3]])
        product = SPACES["product"].within(0, 3)
        assert product.parts[0] == Simplex("abc")
        assert product.parts[1].high[0] == 3
        assert Simplex("ab").within(None, None) == Simplex("ab")
        for none in (Simplex("ab"), Product([Simplex("ab"), Simplex("cd")]), SinglePoint()):
            with pytest.raises(SearchError, match="leave them out"):
                none.within(0, 1)

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: Box([]), "at least one coefficient"),
            (lambda: Box("ab", 1, 0), "must be below the highest, not 1 and 0"),
            (lambda: Box("ab", 0, [1, 0]), "must be below the highest"),
            (lambda: Box("ab", 0, np.inf), "must be below the highest"),
            (lambda: Box("ab", np.nan, 1), "must be below the highest"),
            (lambda: Box("ab", [0, 0, 0], 1), "one number for all or each of 2"),
            (lambda: Box("ab", default=[0.1, 0.2, 0.3]), "2 coefficients"),
            (lambda: Box("ab", default=np.nan), "finite"),
            (lambda: Simplex("a"), "at least two models"),
            (lambda: Simplex("ab", default=[0, 0]), "Every weight is zero"),
            (lambda: Product([Box("ab"), Box("bc")]), "one name"),
            (lambda: Product([]), "at least one"),
        ],
    )
    def test_what_is_no_space_is_said(self, make, words):
        with pytest.raises(MapMergeError, match=words):
            make()
