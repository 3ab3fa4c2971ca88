"""The folder of several guidances: what may be gone on with."""

import pytest

from unigrpo.ranges import ConfigError
from unigrpo.runs.guidance_gap import check_folder


def test_a_folder_whose_first_guidance_was_killed_as_it_began_is_gone_on_with(tmp_path):
    (tmp_path / "guidance-1").mkdir()
    (tmp_path / "guidance-1/.lock").write_text("{}")
    check_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        check_folder(tmp_path)
    (tmp_path / "guidance-1/eval.json").write_text("{}")
    check_folder(tmp_path)
