import sys

import pytest

from trpo_jax.envs.deferred import deferred, make_lazy


def test_a_deferred_module_is_imported_when_it_is_used(tmp_path, monkeypatch):
    (tmp_path / "drawing_later.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    with deferred("drawing_later"):
        import drawing_later as stand_in
    assert "drawing_later" not in sys.modules
    assert stand_in.answer == 42
    import drawing_later

    assert drawing_later is sys.modules["drawing_later"] and drawing_later is not stand_in


def test_a_deferred_module_can_be_used_inside_of_the_block(tmp_path, monkeypatch):
    (tmp_path / "drawing_now.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    with deferred("drawing_now"):
        import drawing_now

        assert drawing_now.answer == 42
    assert sys.modules["drawing_now"].answer == 42


def test_the_code_of_a_lazy_package_runs_when_a_name_is_used_that_it_defines(tmp_path, monkeypatch):
    package = tmp_path / "lazy_package"
    package.mkdir()
    (package / "__init__.py").write_text("from lazy_package import slow\nanswer = slow.answer\n")
    (package / "slow.py").write_text("from lazy_package import fast\nanswer = fast.half * 2\n")
    (package / "fast.py").write_text("half = 21\n")
    monkeypatch.syspath_prepend(tmp_path)
    make_lazy("lazy_package")
    import lazy_package
    from lazy_package import fast

    assert fast.half == 21 and fast is lazy_package.fast
    assert "lazy_package.slow" not in sys.modules
    make_lazy("lazy_package")
    assert lazy_package.answer == 42
    assert sys.modules["lazy_package"] is lazy_package
    with pytest.raises(AttributeError, match="no attribute 'question'"):
        _ = lazy_package.question
    with pytest.raises(ModuleNotFoundError, match="missing_package"):
        make_lazy("missing_package", "missing_package.part")
