from threading import Barrier, Thread

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mapmerge_core.search.threads import one_thread


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


class TestOneThread:
    def test_limits_inside_alone_and_within_itself(self):
        with threadpool_limits(2, user_api="blas"):
            with one_thread():
                with one_thread():
                    assert blas_threads() == {1}
                assert blas_threads() == {1}
            assert blas_threads() == {2}

    def test_lifts_the_limit_after_an_error(self):
        @one_thread()
        def fail():
            assert blas_threads() == {1}
            raise ValueError("as planned")

        with threadpool_limits(2, user_api="blas"):
            with pytest.raises(ValueError, match="as planned"):
                fail()
            assert blas_threads() == {2}

    def test_two_take_turns_and_leave_everything_as_it_was(self):
        before, start, inside, seen = blas_threads(), Barrier(2), [], []

        def search():
            start.wait(10)
            for _ in range(20):
                with one_thread():
                    inside.append(1)
                    seen.append((len(inside), blas_threads()))
                    inside.pop()

        threads = [Thread(target=search) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert seen == [(1, {1})] * 40
        assert blas_threads() == before
