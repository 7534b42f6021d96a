import sys

from trpo_jax.envs.deferred import deferred


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
