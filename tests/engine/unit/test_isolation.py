"""Functions run in a process of their own, and every way in which one fails has a reason in one line."""

import json
import os
import subprocess

import pytest

from {{ cookiecutter.package_name }}.engine.isolation import IsolatedError, IsolatedProcess, run_isolated


def test_result_comes_back_from_another_process() -> None:
    with IsolatedProcess() as process:
        first, second = process.call(os.getpid), process.call(os.getpid)
    assert first == second != os.getpid()


def test_what_a_function_prints_is_no_answer() -> None:
    with IsolatedProcess() as process:
        assert process.call(print, end="not JSON") is None
        assert process.call(subprocess.call, args=["echo", "not JSON"]) == 0
        assert process.call(json.loads, s="[1]") == [1]


def test_error_is_one_line_and_the_process_goes_on() -> None:
    with IsolatedProcess() as process:
        with pytest.raises(IsolatedError, match=r"^JSONDecodeError: .*$"):
            process.call(json.loads, s="{")
        assert process.call(json.loads, s="1") == 1


def test_process_that_ends_is_reported() -> None:
    with pytest.raises(IsolatedError, match="it ended with 3"):
        run_isolated(os._exit, status=3)
