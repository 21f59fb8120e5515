"""What the main job advises can be installed."""

import pytest

from jaxnorm import __main__


def test_the_demo_advises_what_can_be_installed(monkeypatch, capsys):
    """No index has the package: its extra comes from a checkout, or from the repository."""
    monkeypatch.setattr(__main__, "missing_packages", lambda: ["typer"])
    with pytest.raises(SystemExit):
        __main__.main()
    said = capsys.readouterr().err
    assert "typer" in said
    assert "[demo]" in said
    assert "'jaxnorm[demo]'" not in said
