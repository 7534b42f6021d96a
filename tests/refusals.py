"""The behaviour of every script if its command line is wrong."""

import pytest


def refusal(main, argv, capsys):
    """Returns the paragraph that a script prints before it exits with code 2."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err
